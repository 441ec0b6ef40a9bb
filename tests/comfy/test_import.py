"""What importing the pack adds to a ComfyUI that is starting: its own modules and some of Python's, and
nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ["COMFYUI_UNDER_TEST"]).resolve()

# What main.py imports before it loads custom nodes, then the pack as nodes.load_custom_node does. It prints
# the modules that came with it.
IMPORT = """
import asyncio, importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import utils.extra_config, comfy.utils, execution, server, nodes
before = set(sys.modules)
name = sys.argv[2].replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, sys.argv[2] + "/__init__.py")
sys.modules[name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
extension = asyncio.run(module.comfy_entrypoint())
count = len(asyncio.run(extension.get_node_list()))
print(json.dumps([count, name, sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Number of nodes, the pack's module name, and the modules that importing it added, in a Python of its
    own."""
    command = [sys.executable, "-c", IMPORT, str(COMFYUI), str(ROOT)]
    done = subprocess.run(
        command,
        cwd=tmp_path_factory.mktemp("import"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_pack_adds_no_library(imported):
    count, name, added = imported
    assert count == len(json.loads((ROOT / "tests" / "fixtures" / "nodes.json").read_text(encoding="utf-8")))
    foreign = {
        module
        for module in added
        if module.split(".")[0] not in {name, "comfy", "comfy_api", *sys.stdlib_module_names}
    }
    assert not foreign, f"{len(foreign)} modules of other libraries: {sorted(foreign)[:20]}"


def test_what_only_development_needs_stays_out(imported):
    _, name, added = imported
    ours = {module.removeprefix(f"{name}.") for module in added if module.startswith(name)}
    assert not {module.split(".")[0] for module in ours} - {name, "cache_core", "demo", "nodes", "web_files"}
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    absent = {
        line.removesuffix(".py").replace("/", ".") for line in lines if line.endswith(".py")
    }  # from the archive for users
    assert {"demo.train", "demo.judge"} <= absent and not ours & absent
