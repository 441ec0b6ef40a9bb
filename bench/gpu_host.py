"""ComfyUI and the pack in one process, also on a machine that lacks most of ComfyUI's requirements.

`start` must run before anything else imports ComfyUI."""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import types
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import MagicMock

import torch

ROOT = Path(__file__).resolve().parents[1]
NAME = "dual_cache_under_test"
REPLACEABLE = (
    "alembic aiohttp av blake3 comfy_aimdo comfyui_embedded_docs comfyui_frontend_package "
    "comfyui_workflow_templates glfw glsl kornia OpenGL pydantic pydantic_settings requests sentencepiece "
    "simpleeval spandrel sqlalchemy tokenizers torchaudio torchsde torchvision trampoline yarl"
).split()
"""Packages that ComfyUI imports and this bench does not use; optional ones (xformers) must stay missing."""


class _Replacement(types.ModuleType):
    """An empty package in place of a missing one."""

    __path__: list[str] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _Replacements(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `_Replacement` for what is not installed; `used` names the packages it was asked for."""

    def __init__(self):
        self.used: set[str] = set()

    def find_spec(self, name, path=None, target=None):
        package = name.split(".")[0]
        if package not in REPLACEABLE:
            return None
        self.used.add(package)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Replacement(spec.name)

    def exec_module(self, module):
        pass


class _Hidden(importlib.abc.MetaPathFinder):
    """Hides installed packages, to try on any machine what a bare one does."""

    def __init__(self, names: list[str], replacements: _Replacements):
        self.names, self.replacements = names, replacements

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.names:
            return None
        spec = self.replacements.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec


@dataclass
class Host:
    """What the sections use.

    cuda: whether a GPU is used; device and dtype follow from it.
    tiny: models of a few thousand weights, for a try on the CPU.
    replaced: packages that were missing and are empty here.
    """

    comfy: Path
    cuda: bool
    device: torch.device
    tiny: bool
    dynamic: bool
    replaced: set[str]
    blocks: int = 0
    notes: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16

    def part(self, name: str):
        """A module of the pack, the one that its nodes use."""
        return importlib.import_module(f"{NAME}.{name}")

    @property
    def patching(self):
        return self.part("nodes.comfy.patching")

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Returns unused device memory."""
        import gc

        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


OLDEST = (0, 4)
"""Version of ComfyUI; older ones take no quantised weights and build every FLUX in one size."""


def start(options: argparse.Namespace) -> Host:
    """Imports ComfyUI and the pack; options as `bench.gpu` reads them."""
    sys.dont_write_bytecode = True
    replacements = _Replacements()
    hidden = list(filter(None, os.environ.get("DUAL_CACHE_HIDE", "").split(",")))
    if hidden:
        sys.meta_path.insert(0, _Hidden(hidden, replacements))
    sys.meta_path.append(replacements)  # asked last, so only for what is not installed
    notes: dict = {}
    if options.dynamic_child:
        import comfy_aimdo.control

        comfy_aimdo.control.init()
    cuda = torch.cuda.is_available() and not options.tiny
    sys.path.insert(0, str(options.comfy))
    from comfy.cli_args import args

    args.cpu = not cuda
    notes["folder"] = tempfile.TemporaryDirectory(prefix="dual-cache-gpu-")
    args.base_directory = notes["folder"].name
    if not cuda:
        torch.set_num_threads(1)
    import comfy.ldm.flux.math as flux_math
    import comfyui_version

    version = comfyui_version.__version__
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise SystemExit(f"bench.gpu needs ComfyUI {'.'.join(map(str, OLDEST))} or newer, not {version}.")
    import comfy.quant_ops as quantised

    if not hasattr(quantised, "ck"):  # without comfy_kitchen
        quantised.ck = types.SimpleNamespace(
            apply_rope=flux_math._apply_rope, apply_rope1=flux_math._apply_rope1
        )
        notes["comfy_kitchen"] = "missing, so torch's own rotary embedding runs"
    _import_pack(notes)
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    return Host(
        Path(options.comfy),
        cuda,
        device,
        options.tiny,
        options.dynamic_child,
        replacements.used,
        options.blocks,
        notes,
    )


def _import_pack(notes: dict) -> None:
    """As ComfyUI imports it; where its entry point lacks a package, the parts that sample are imported
    alone."""
    spec = importlib.util.spec_from_file_location(
        NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        notes["entry_point"] = repr(error)[:300]
    try:
        importlib.import_module(f"{NAME}.nodes.comfy.patching")
    except Exception as error:
        notes["nodes"] = repr(error)[:300]
        for name in ("nodes", "nodes.comfy"):
            package = types.ModuleType(f"{NAME}.{name}")
            package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
            sys.modules[f"{NAME}.{name}"] = package
