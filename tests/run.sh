#!/usr/bin/env bash
# All checks and all tests, the real-LLM ones included. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash .ci/setup
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
mypy
lint-imports
# The models first, with their progress in sight: a test that downloads looks hung.
ezxmc models pull all-MiniLM-L6-v2
ezxmc models pull SmolLM2-135M-Instruct
# A test by itself seldom needs both cores: most models in tests are tiny, and most time goes to imports.
pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
