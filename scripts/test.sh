#!/usr/bin/env bash
# Sets up ./.venv on a bare machine and runs the tests.
#   scripts/test.sh            the suite
#   scripts/test.sh --all      the long checks as well
#   scripts/test.sh ARGS...    everything else goes to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup_environment.sh

select=(-m 'not slow')
arguments=()
for argument in "$@"; do
  if [ "$argument" = --all ]; then select=(); else arguments+=("$argument"); fi
done
.venv/bin/ruff check .
# One process per core, each file in one of them; `-n 0` runs all in this one.
exec .venv/bin/python -m pytest --durations=25 \
  --numprocesses=auto --maxprocesses=4 --dist=loadfile \
  ${select[@]+"${select[@]}"} ${arguments[@]+"${arguments[@]}"}
