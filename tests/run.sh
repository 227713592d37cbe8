#!/usr/bin/env bash
# Every check and test, the real-LLM ones included.
#   --fast       the linters, and the tests that need no weights: after each edit
#   --long       the large forms of tests too, and many examples of every property
#   --coverage   which lines the tests without an LLM run, in all processes
#   ARGUMENTS    pytest with these, without the linters; -m "not llm..." in two processes
set -euo pipefail
cd "$(dirname "$0")/.."
bash .ci/setup
export PATH="$PWD/.venv/bin:$PATH"

# Tests of pages want a browser; where it can be had, none of them is skipped.
if ! { command -v chromium && command -v chromedriver; } >/dev/null && [ "$(id -u)" = 0 ] &&
    command -v apt-get >/dev/null; then
    echo "installing chromium and chromium-driver for the tests of pages"
    { apt-get update --quiet && apt-get install --quiet --yes chromium chromium-driver; } >/dev/null ||
        echo "they could not be installed: the tests of pages are skipped"
fi
# The models first, with their progress in sight: a test that downloads looks hung.
if [ "${1:-}" != --fast ]; then
    ezxmc models pull all-MiniLM-L6-v2
    ezxmc models pull SmolLM2-135M-Instruct
fi

# Most models in tests are tiny, so one thread a process: threads of two processes on two cores wait for each
# other. Engines want the machine for themselves.
two=(-n 2 --dist loadfile --no-loadscope-reorder)
began=$SECONDS
case "${1:-}" in
"" | --fast | --long)
    ruff check .
    ruff format --check .
    mypy
    lint-imports
    ;;
--coverage)
    # A file of each process, put together at the end; what is killed leaves none.
    lines=$(mktemp -d)
    trap 'rm -rf "$lines"' EXIT
    export COVERAGE_FILE=$lines/lines
    OMP_NUM_THREADS=1 coverage run -m pytest -m "not llm" "${two[@]}" "${@:2}" || failed=$?
    coverage combine --quiet
    coverage report
    exit "${failed:-0}"
    ;;
*)
    case "$*" in
    *"not llm"*) OMP_NUM_THREADS=1 exec pytest "${two[@]}" "$@" ;;
    *) exec pytest "$@" ;;
    esac
    ;;
esac

times=$(mktemp -d)
failed=0
# Stores and bundles wait for the disk at every step; what is thrown away need not.
place=()
if [ "$(df --output=avail -B1M /dev/shm 2>/dev/null | tail -1)" -ge 2000 ] 2>/dev/null; then
    place=(--basetemp "$(mktemp -d -p /dev/shm ezxmc-tests-XXXX)")
    trap 'rm -rf "${place[1]}"' EXIT
fi
parts() { # NAME MARKS [ARGUMENTS]: one part of the tests
    pytest -m "$2" --junitxml "$times/$1.xml" "${@:3}" || failed=$?
}
case "${1:-}" in
"")
    OMP_NUM_THREADS=1 parts rest "not llm" "${two[@]}" "${place[@]}"
    parts llm llm
    ;;
--fast)
    # Some wait for a process or a server most of their time: three keep two cores busy.
    OMP_NUM_THREADS=1 parts rest "not llm and not encoder" "${two[@]}" -n 3 "${place[@]}"
    ;;
--long)
    export HYPOTHESIS_PROFILE=long
    OMP_NUM_THREADS=1 parts rest "(long or not long) and not llm" "${two[@]}"
    parts llm "(long or not long) and llm"
    ;;
esac
python tests/support/times.py "$((SECONDS - began))" "${1:-}" "$times"/*.xml
exit "$failed"
