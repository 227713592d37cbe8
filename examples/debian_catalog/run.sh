#!/usr/bin/env bash
# A Debian system's packages, from cold to report; then tags for packages the run never saw, against gold.
set -euo pipefail
cd "$(dirname "$0")"
# catalog.py checks more, but only after a set-up of 4 GB.
if ! command -v apt-get >/dev/null; then
    echo "this example needs Debian's apt: run it on Debian or in a Debian container" >&2
    exit 2
fi
bash ../../.ci/setup
export PATH="$PWD/../../.venv/bin:$PATH"
# 3: done, but some rows were bad, and have been told.
step() {
    local code=0
    "$@" || code=$?
    [ "$code" = 0 ] || [ "$code" = 3 ] || exit "$code"
}
# Once: a run that goes on must find the documents it began with.
[ -e data/report_gold.tsv ] || step python catalog.py data
step ezxmc run config.yaml
step ezxmc predict run/bundle data/report_documents.jsonl --k 50 -o run/report_tags.jsonl
step ezxmc evaluate run/report_tags.jsonl data/report_gold.tsv
