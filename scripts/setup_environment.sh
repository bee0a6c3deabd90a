#!/usr/bin/env bash
# Creates ./.venv with everything installed, or finds it ready. Run by the
# other scripts; set PYTHON to choose an interpreter, and EXTRAS to choose what
# is installed (default: all; all,cuda12 or all,tpu on accelerators).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
"$PYTHON" - <<'PY' || exit 1
import sys
if not (3, 11) <= sys.version_info < (3, 14):
  sys.exit(f'calm_jax needs Python 3.11 to 3.13, {sys.executable} is '
           f'{sys.version.split()[0]}; set PYTHON to another interpreter')
PY

# Installed once per state of setup.py: its checksum names the stamp.
EXTRAS=${EXTRAS:-all}
stamp=.venv/installed-$(cksum < setup.py | cut -d' ' -f1)
[ "$EXTRAS" = all ] || stamp=$stamp-$EXTRAS
if [ ! -e "$stamp" ]; then
  echo "Setting up ./.venv (first time: a few minutes, about 3 GB) ..."
  "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install -qq --disable-pip-version-check \
    --editable ".[$EXTRAS]"
  touch "$stamp"
  echo "Installed in ${SECONDS} s."
fi
