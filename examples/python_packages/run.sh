#!/usr/bin/env bash
# The main job on real data: tag the Python packages of this environment, from cold to report.
set -euo pipefail
cd "$(dirname "$0")"
bash ../../.ci/setup
export PATH="$PWD/../../.venv/bin:$PATH"
python catalog.py data
ezxmc run config.yaml
