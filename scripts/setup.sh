#!/usr/bin/env bash
# Makes the repository's own Python environment in .venv, once. demo.sh and test.sh source this file.
# Gives them ROOT (the repository), PY (the environment's Python) and the functions below. PYTHON names another base interpreter.
set -euo pipefail
unset CDPATH PYTHONHOME PYTHONPATH
ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

heading() { printf '\n== %s ==\n' "$1"; }

python_in() {  # the interpreter of a virtual environment folder
  local path
  for path in "$1/bin/python" "$1/Scripts/python.exe"; do
    if [ -x "$path" ] && "$path" -c '' 2>/dev/null; then printf '%s\n' "$path"; return 0; fi
  done
  return 1
}

base_python() {  # prefers the versions the pinned torch has builds for
  local limit name
  for limit in '(3, 15)' '(4,)'; do
    for name in ${PYTHON:+"$PYTHON"} python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do
      if "$name" -c "import sys; sys.exit(not (3, 10) <= sys.version_info < $limit)" 2>/dev/null; then printf '%s\n' "$name"; return 0; fi
    done
  done
  return 1
}

pip_install() {  # pip install with one short line per package; warnings and errors in full
  local line
  "$PY" -m pip install --no-input --disable-pip-version-check --progress-bar off "$@" | while IFS= read -r line; do
    line="${line%% (from *}"
    case "$line" in
      Collecting*) printf '  %s\n' "${line#Collecting }" ;;
      Processing*) printf '  %s\n' "${line##*/}" ;;
      *Downloading*.metadata*) ;;
      *Downloading*) printf '  %s\n' "$line" ;;
      Installing*) echo "  Installing the packages" ;;
    esac
  done
}

installed() { cmp -s "$ROOT/$1" "$VENV/$1"; }  # the stamp is a copy of the requirements, written once they are installed

install_requirements() { installed "$1" || { pip_install -r "$ROOT/$1" && cp "$ROOT/$1" "$VENV/$1"; }; }

make_environment() {
  local base
  if ! PY="$(python_in "$VENV")" || ! "$PY" -m pip --version >/dev/null 2>&1; then
    base="$(base_python)" || { echo "Python 3.10 or newer is needed and was not found; PYTHON=/path/to/python names one." >&2; return 1; }
    if ! "$base" -m venv --clear "$VENV"; then
      echo "$base could not make .venv; Debian and Ubuntu keep what it needs in the package python3-venv." >&2
      return 1
    fi
    PY="$(python_in "$VENV")"
  fi
  if installed requirements-dev.txt; then return 0; fi
  echo "Installing requirements-dev.txt into .venv; the first time this fetches PyTorch and takes some minutes."
  if ! install_requirements requirements-dev.txt; then
    echo "The environment in .venv could not be installed; pip says above why." >&2
    return 1
  fi
}

heading "Environment"
make_environment
echo "$("$PY" --version), $("$PY" -c 'import importlib.metadata as m; print("torch", m.version("torch"))'), in .venv"
