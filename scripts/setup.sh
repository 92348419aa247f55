# Sourced by the other scripts: creates .venv if it is missing, and installs march-search with the extras named in $1.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "march-search needs Python 3.11 or newer, which '$python' is not. Use PYTHON=/path/to/python bash $0" >&2
  exit 2
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  echo "creating .venv ..." >&2
  if ! "$python" -m venv --clear .venv; then
    echo "'$python' cannot create virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2
    exit 2
  fi
fi
echo "installing march-search[$1], a minute or two the first time ..." >&2
PIP_CONSTRAINT=constraints.txt .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$1]"
