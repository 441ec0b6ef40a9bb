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
