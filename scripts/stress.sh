#!/usr/bin/env bash
# What the pack promises, tried at length: prints a table, writes it as JSON and, where all questions were asked, as docs/stress.md.
#   --minutes N   time for all of it (30); what does not fit is named in the table
#   --only A,B    some of the questions: samplers, branches, lifecycle, others, hostile, paths, soak, determinism
#   --packs DIR   a folder with other cache packs, to be tried on the same model
# Without --only it first runs the tests that scripts/test.sh leaves out because they are slow and rarely break.
#   COMFYUI_PATH, COMFYUI_PYTHON   as in scripts/test.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
source "$ROOT/scripts/comfyui.sh"
cd -- "$ROOT"
FOLDER="$(find_comfyui)"
[ -n "$FOLDER" ] || { echo "No ComfyUI was found; set COMFYUI_PATH to a ComfyUI folder." >&2; exit 1; }
COMFY_PY="$(comfy_python "$FOLDER")" || { echo "$FOLDER has no .venv or venv; set COMFYUI_PYTHON to its Python." >&2; exit 1; }
case " $* " in
  *" --only"*) ;;
  *)
    heading "Long tests"
    "$PY" -m pytest tests --long -m long
    COMFYUI_UNDER_TEST="$FOLDER" PYTHONPATH="$(comfy_pytest_path "$COMFY_PY")" \
      "$COMFY_PY" -m pytest tests/comfy -p no:cacheprovider --long -m long
    ;;
esac
exec "$PY" -m stress --comfyui "$FOLDER" --comfyui-python "$COMFY_PY" "$@"
