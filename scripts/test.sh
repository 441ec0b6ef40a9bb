#!/usr/bin/env bash
# All tests. Parts whose tools are not on this machine do not run, and the end of the output says which and why.
#   --all                also a ComfyUI between the newest and the oldest one, and the browser tests with all of them
#   --long               also the tests that are slow and rarely break
#   COMFYUI_PATH         a ComfyUI folder; else the one the pack stands in, else ~/comfy/ComfyUI
#   COMFYUI_OLD_PATH     the oldest supported ComfyUI; else ~/comfy/ComfyUI-0.3.64
#   COMFYUI_MIDDLE_PATH  one between them, tested where this is set; with --all else ~/comfy/ComfyUI-0.26
#   COMFYUI_PYTHON       their Python, where they have no .venv or venv of their own
#   CHROMIUM_PATH        the browser for the browser tests
#   TEST_WORKERS         how many processes run tests side by side (2)
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
source "$ROOT/scripts/comfyui.sh"
cd -- "$ROOT"
NOT_RUN="" FAILED="" CHECKOUTS="" ALL="" OPTIONS=(-n "${TEST_WORKERS:-2}" --dist loadfile)
for option in "$@"; do
  case "$option" in
    --all) ALL=yes ;;
    --long) OPTIONS+=(--long) ;;
    *) echo "Unknown option $option: test.sh takes --all and --long." >&2; exit 2 ;;
  esac
done

skip() { NOT_RUN+="$1: $2"$'\n'; echo "did not run: $2"; }  # part, reason
failed() { FAILED+="$1"$'\n'; echo "FAILED: $1"; }
any_file() { [ -e "$1" ]; }  # called with a glob

comfy_tests() {  # part name, ComfyUI folder
  local part="$1" folder="$2" version python extra
  version="$(sed -n 's/^__version__ *= *"\(.*\)".*/\1/p' "$folder/comfyui_version.py" 2>/dev/null || true)"
  part="$part${version:+ $version}"
  heading "$part"
  echo "$folder"
  if ! python="$(comfy_python "$folder")"; then
    skip "$part" "$folder has no .venv or venv; set COMFYUI_PYTHON to its Python"
    return 0
  fi
  CHECKOUTS+="$folder"$'\t'"$python"$'\n'
  COMFYUI_UNDER_TEST="$folder" "$PY" -m pytest tests/imports || failed "Imports from $part"
  if ! any_file tests/comfy/test_*.py; then skip "$part" "there are no tests in tests/comfy"; return 0; fi
  if ! extra="$(comfy_pytest_path "$python")"; then skip "$part" "pytest could not be installed for $python"; return 0; fi
  COMFYUI_UNDER_TEST="$folder" PYTHONPATH="$extra" "$python" -m pytest tests/comfy -p no:cacheprovider "${OPTIONS[@]}" \
    || failed "$part"
}

comfy_part() {  # part name, ComfyUI folder or nothing, why there is none
  if [ -z "$2" ]; then heading "$1"; skip "$1" "$3"
  elif [ ! -f "$2/main.py" ] || [ ! -d "$2/comfy" ]; then
    heading "$1"; echo "$2 is no ComfyUI folder: it lacks main.py or comfy/"; failed "$1"
  else comfy_tests "$1" "$(cd -- "$2" && pwd)"
  fi
}

ruff_part() {
  heading "ruff"
  "$PY" -m ruff check --output-format=concise . || failed "ruff"
  "$PY" -m ruff format --check --quiet . || failed "ruff format"
}

pyright_part() {  # basedpyright brings its own node
  heading "Types in Python"
  "$PY" -m basedpyright || failed "Types in Python"
}

js_part() {
  heading "JavaScript"
  if ! any_file tests/js/*.test.mjs; then skip "JavaScript" "there are no tests in tests/js"
  elif ! command -v node >/dev/null; then skip "JavaScript" "node is not on the PATH"
  elif ! node -e 'process.exit(+process.versions.node.split(".")[0] >= 20 ? 0 : 1)'; then skip "JavaScript" "node 20 or newer is needed"
  else
    node --test --test-reporter=spec tests/js/*.test.mjs || failed "JavaScript"
    type_check
    return 0
  fi
  skip "Type check" "the part JavaScript did not run"
}

# Checks the types that comments in web/ declare, with the packages that package.json names; npm puts them into node_modules.
type_check() {
  local wanted have missing
  wanted="$(node -p 'Object.entries(require("./package.json").devDependencies).map((e) => e.join(" ")).join(", ")')"
  have="$(node -p 'Object.keys(require("./package.json").devDependencies).map((name) =>
    `${name} ${require(`./node_modules/${name}/package.json`).version}`).join(", ")' 2>/dev/null || true)"
  missing="node_modules lacks $wanted"
  if [ "$have" = "$wanted" ]; then :
  elif ! command -v npm >/dev/null; then skip "Type check" "$missing, and npm is not on the PATH"; return 0
  elif ! npm install --no-save --no-package-lock --no-audit --no-fund --ignore-scripts --fetch-retries=1 --loglevel=error; then
    skip "Type check" "$missing, and npm could not install it"; return 0
  fi
  echo "$wanted"
  node_modules/.bin/tsc --project jsconfig.json || failed "Type check"
}

find_chromium() {
  local name
  for name in ${CHROMIUM_PATH:+"$CHROMIUM_PATH"} chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v -- "$name"; then return 0; fi
  done
  return 1
}

browser_part() {
  local chromium folder python
  heading "Browser"
  if ! any_file tests/browser/test_*.py; then skip "Browser" "there are no tests in tests/browser"
  elif [ -z "$CHECKOUTS" ]; then skip "Browser" "no ComfyUI with a Python of its own was found"
  elif ! chromium="$(find_chromium)"; then skip "Browser" "no Chromium was found; set CHROMIUM_PATH to one"
  elif ! install_requirements requirements-browser.txt; then skip "Browser" "playwright could not be installed"
  else
    while IFS=$'\t' read -r folder python <&3; do
      if [ -z "$ALL" ] && [ "$folder" != "${CHECKOUTS%%$'\t'*}" ]; then
        skip "Browser with $folder" "only with --all"
        continue
      fi
      echo "$folder"
      COMFYUI_UNDER_TEST="$folder" COMFYUI_PYTHON="$python" CHROMIUM_UNDER_TEST="$chromium" \
        "$PY" -m pytest tests/browser || failed "Browser with $folder"
    done 3<<<"${CHECKOUTS%$'\n'}"
  fi
}

core_part() {  # last, so that the output ends in pytest's summary; tests/conftest.py prints both lists before it
  heading "Core"
  DUAL_CACHE_NOT_RUN="$NOT_RUN" DUAL_CACHE_FAILED="$FAILED" "$PY" -m pytest tests "${OPTIONS[@]}" && [ -z "$FAILED" ]
}

unset COMFYUI_UNDER_TEST CHROMIUM_UNDER_TEST DUAL_CACHE_NOT_RUN DUAL_CACHE_FAILED
NEW="$(find_comfyui)"
OLD="${COMFYUI_OLD_PATH:-}"
if [ -z "$OLD" ] && [ -f "$HOME/comfy/ComfyUI-0.3.64/main.py" ]; then OLD="$HOME/comfy/ComfyUI-0.3.64"; fi
MIDDLE="${COMFYUI_MIDDLE_PATH:-}"
if [ -z "$MIDDLE" ] && [ -n "$ALL" ]; then MIDDLE="$HOME/comfy/ComfyUI-0.26"; fi
comfy_part "ComfyUI" "$NEW" "none was found; set COMFYUI_PATH to a ComfyUI folder"
if [ -n "$MIDDLE" ]; then comfy_part "Middle ComfyUI" "$MIDDLE" ""
else heading "Middle ComfyUI"; skip "Middle ComfyUI" "only with --all or COMFYUI_MIDDLE_PATH"
fi
if [ -z "$OLD" ] || [ "$OLD" != "$NEW" ]; then
  comfy_part "Oldest ComfyUI" "$OLD" "none was found; set COMFYUI_OLD_PATH to a ComfyUI 0.3.64 folder"
fi
ruff_part
pyright_part
js_part
browser_part
core_part
