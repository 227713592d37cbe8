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
if [ $# -gt 0 ]; then
    exec pytest "$@"
fi
# Most models in tests are tiny, so one thread a process: threads of two processes on two cores wait for each
# other. Engines want the machine for themselves.
failed=0
OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not llm" || failed=$?
pytest -m llm || failed=$?
exit "$failed"
