#!/usr/bin/env bash
# A Debian system's packages, from cold to report; then tags for packages the run never saw, against gold.
# Where there is no such system, the Python packages of this environment instead.
set -euo pipefail
cd "$(dirname "$0")"
instead() {
    echo "$1: tagging this environment's Python packages instead (examples/python_packages)" >&2
    exec bash ../python_packages/run.sh
}
[ -e data/report_gold.tsv ] || command -v apt-get >/dev/null || instead "no apt on this system"
bash ../../.ci/setup
export PATH="$PWD/../../.venv/bin:$PATH"
# 3: done, but some rows were bad, and have been told.
step() {
    local code=0
    "$@" || code=$?
    [ "$code" = 0 ] || [ "$code" = 3 ] || return "$code"
}
# Once: a run that goes on must find the documents it began with.
if [ ! -e data/report_gold.tsv ]; then
    code=0
    step python catalog.py data || code=$?
    [ "$code" != 2 ] || instead "no package index with tags on this system"
    [ "$code" = 0 ] || exit "$code"
fi
step ezxmc run config.yaml
step ezxmc predict run/bundle data/report_documents.jsonl --k 50 -o run/report_tags.jsonl
step ezxmc evaluate run/report_tags.jsonl data/report_gold.tsv
