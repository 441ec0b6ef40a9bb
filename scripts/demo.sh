#!/usr/bin/env bash
# The demo: the embedded model sampled uncached, dual cached and with fewer steps.
# Options go to demo/run.py; relative paths in them count from the repository.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
heading "Demo"
cd -- "$ROOT"
exec "$PY" -m demo.run "$@"
