"""Starts a ComfyUI in this process, on the CPU and with a temporary folder of its own, and imports the pack
as ComfyUI does.

Import this module before anything of ComfyUI's: importing it reads COMFYUI_UNDER_TEST and puts that folder
before the repository, whose folder `nodes` would hide ComfyUI's module of that name."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_UNDER_TEST", ""))


def is_comfyui(folder: Path) -> bool:
    return (folder / "comfy").is_dir() and (folder / "main.py").is_file()


if not is_comfyui(COMFYUI):
    raise ImportError(
        "this needs COMFYUI_UNDER_TEST, the folder of a ComfyUI, and that ComfyUI's Python; the scripts "
        "find both."
    )
sys.path.insert(0, str(COMFYUI))
from comfy.cli_args import args  # noqa: E402

_base = tempfile.TemporaryDirectory(prefix="dual-cache-comfyui-")
args.cpu = True  # read when comfy.model_management is imported
args.base_directory = _base.name  # read when folder_paths is imported
torch.set_num_threads(1)  # models this small gain nothing from more


@cache
def pack():
    """The pack's module, imported from its folder as ComfyUI's nodes.load_custom_node does."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    import comfy.sample  # noqa: F401  (the pack's entry point asks whether ComfyUI is there)

    spec.loader.exec_module(module)
    return module


def part(name: str):
    """`part("cache_core.schedule.plan")`: a module of the imported pack, the very one its nodes use."""
    return importlib.import_module(f"{pack().__name__}.{name}")


def comfyui_version() -> str:
    """The version of this ComfyUI."""
    import comfyui_version

    return comfyui_version.__version__


def nearest(version: str, known: Iterable[str]) -> str:
    """The version of `known` that is in force for this one: itself, else the newest that is older, else the
    oldest; says so where it is another. ValueError where none is known."""
    numbers = {name: tuple(int(part) for part in re.findall(r"\d+", name)) for name in known}
    if not numbers:
        raise ValueError("known must name at least one version.")
    if version in numbers:
        return version
    own = tuple(int(part) for part in re.findall(r"\d+", version))
    older = [name for name in numbers if numbers[name] < own]
    found = max(older, key=numbers.get) if older else min(numbers, key=numbers.get)
    warnings.warn(f"ComfyUI {version} is not in the tables; taking what they say of {found}.", stacklevel=2)
    return found
