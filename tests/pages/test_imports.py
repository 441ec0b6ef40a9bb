"""What the shipped Python files import: nothing beyond ComfyUI's own packages, and within cache_core only
packages that its docstring lists before their own."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [ROOT / "__init__.py", ROOT / "web_files.py"]
SHIPPED += sorted(path for folder in ("cache_core", "nodes") for path in (ROOT / folder).rglob("*.py"))
PACKAGES = {"torch", "numpy", "safetensors", "kornia", "PIL", "aiohttp"}
"""What ComfyUI installs for itself."""
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
"""ComfyUI's own modules."""
OPTIONAL = {"cache_core/report/metrics.py": {"lpips"}}
"""What a file uses where it is installed, and says so where it is not."""
UPWARD: dict[str, set[str]] = {}
"""Imports that point the wrong way. They must be there: one that is gone has to go from this list too."""
OUTSIDE = PACKAGES | COMFYUI | set(sys.stdlib_module_names)


def imports_of(path: Path, root: Path = ROOT) -> set[str]:
    """Dotted names of the modules that a file imports; those of this repository begin with a dot."""
    package, found = path.relative_to(root).with_suffix("").parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            start = "." if node.level else ""
            found |= {f"{start}{base}"} if node.module else {f"{start}{base}.{a.name}" for a in node.names}
    return found


def outside(path: Path, root: Path = ROOT) -> set[str]:
    """Top-level modules that a file imports and that ComfyUI does not bring."""
    return {name.split(".")[0] for name in imports_of(path, root) if name[0] != "."} - OUTSIDE


def order() -> list[str]:
    """The packages and files of cache_core from the lowest to the highest, as its docstring lists them."""
    text = ast.get_docstring(ast.parse((ROOT / "cache_core/__init__.py").read_text(encoding="utf-8")))
    return re.findall(r"^(\w+)  +\S", text, re.MULTILINE)


def upward(path: Path, floors: list[str], root: Path = ROOT) -> set[str]:
    """Packages that a file of cache_core imports although they stand after its own."""
    own = path.relative_to(root / "cache_core").with_suffix("").parts[0]
    used = {name.split(".")[2] for name in imports_of(path, root) if name.startswith(".cache_core.")}
    return {name for name in used if floors.index(name) > floors.index(own)}


def test_the_docstring_lists_everything_in_cache_core():
    found = {path.stem for path in (ROOT / "cache_core").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert sorted(order()) == sorted(found - {"__init__", "__pycache__"})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_beyond_comfyuis_packages_is_imported(path):
    assert outside(path) == OPTIONAL.get(path.relative_to(ROOT).as_posix(), set())


CORE = [path for path in SHIPPED if path.is_relative_to(ROOT / "cache_core")]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_cache_core_imports_neither_the_nodes_nor_comfyui_nor_a_later_package(path):
    names = imports_of(path)
    assert {name for name in names if name.startswith(".") and not name.startswith(".cache_core")} == set()
    assert {name.split(".")[0] for name in names} & COMFYUI == set()
    if path.stem != "__init__" or path.parent != ROOT / "cache_core":
        assert upward(path, order()) == UPWARD.get(path.relative_to(ROOT).as_posix(), set())


@pytest.mark.parametrize(
    ("text", "found", "up"),
    [
        ("import requests", {"requests"}, set()),
        ("from einops import rearrange", {"einops"}, set()),
        ("from ..hooks.shims import shim", set(), {"hooks"}),
        ("from .. import controller", set(), {"controller"}),
        ("def f():\n    from ..report import metrics", set(), {"report"}),
        ("import torch\nfrom ..base import errors", set(), set()),
    ],
)
def test_both_rules_can_be_broken(tmp_path, text, found, up):
    path = tmp_path / "cache_core" / "schedule" / "plan.py"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert outside(path, tmp_path) == found
    assert upward(path, order(), tmp_path) == up
