#!/usr/bin/env bash
# Creates ./.venv with everything installed, or finds it ready. Run by the
# other scripts, and alone for another choice of what is installed:
#   scripts/setup_environment.sh
#   EXTRAS=all,cuda12 PYTHON=python3.12 scripts/setup_environment.sh
# PYTHON  the interpreter (default: python3)
# EXTRAS  of setup.py (default: all): seqio, metrics, reports and tests, all of
#         which are in `all`; cuda12, cuda13 or tpu for accelerators
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  '') ;;
  -h | --help) sed -n '2,8p' "$0" | cut -c3-; exit 0 ;;
  *) echo "setup_environment.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
esac

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
  # pip goes on without an extra that it does not find.
  for extra in ${EXTRAS//,/ }; do
    grep -q "^    '$extra': " setup.py || {
      echo "setup_environment.sh: there is no extra '$extra'; see --help" >&2
      exit 2
    }
  done
  echo "Setting up ./.venv (first time: a few minutes, about 4 GB) ..."
  "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install -qq --disable-pip-version-check \
    --editable ".[$EXTRAS]"
  touch "$stamp"
  echo "Installed in ${SECONDS} s."
fi
