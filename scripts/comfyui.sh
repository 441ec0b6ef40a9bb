# Finds a ComfyUI and its Python; test.sh and stress.sh source this file after setup.sh.

comfy_python() {
  python_in "$1/.venv" || python_in "$1/venv" || command -v -- "${COMFYUI_PYTHON:-}"
}

find_comfyui() {
  local nodes host
  nodes="$(dirname -- "$ROOT")" host="$(dirname -- "$(dirname -- "$ROOT")")"
  if [ -n "${COMFYUI_PATH:-}" ]; then printf '%s\n' "$COMFYUI_PATH"
  elif [ "$(basename -- "$nodes")" = custom_nodes ] && [ -f "$host/main.py" ] && [ -d "$host/comfy" ]; then printf '%s\n' "$host"
  elif [ -f "$HOME/comfy/ComfyUI/main.py" ]; then printf '%s\n' "$HOME/comfy/ComfyUI"
  fi
}

# What to add to the given Python's path for pytest and its plugin: nothing, or a folder of ours. Its own environment
# stays as it is.
comfy_pytest_path() {
  local version target wanted
  if "$1" -c 'import sys, pytest, xdist; sys.exit(pytest.version_tuple < (8,))' 2>/dev/null; then return 0; fi
  wanted="$(grep -E '^pytest(-xdist)?==' requirements-dev.txt)"
  version="$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" || return 1
  target="$VENV/comfy-pytest/$version"
  if [ ! -e "$target/xdist" ]; then
    "$1" -m pip install --quiet --no-input --disable-pip-version-check --upgrade --target "$target" $wanted >&2 || return 1
  fi
  printf '%s\n' "$target"
}
