#!/usr/bin/env bash
# Sets up ./.venv on a bare machine, checks the style, runs the tests, which
# check the types as well:
#   scripts/test.sh            the suite
#   scripts/test.sh --all      the long checks as well
#   scripts/test.sh ARGS...    everything else goes to pytest
#   scripts/test.sh -n 0 tests/exits -k budget
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,7p' "$0" | cut -c3-; }

select=(-m 'not slow')
arguments=()
for argument in "$@"; do
  case "$argument" in
    -h | --help) usage; exit 0 ;;
    --all) select=() ;;
    *) arguments+=("$argument") ;;
  esac
done
scripts/setup_environment.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# One process per core, each file in one of them, in the order of
# tests/conftest.py; `-n 0` runs all in this one.
exec .venv/bin/python -m pytest --durations=25 \
  --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
  ${select[@]+"${select[@]}"} ${arguments[@]+"${arguments[@]}"}
