"""Packs what a machine with Python, torch and numpy alone lacks: ComfyUI's code and the few packages that the
bench uses."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".gpu"
PARTS = (
    "comfy comfy_api comfy_api_nodes/util comfy_execution comfy_config comfy_extras/nodes_torch_compile.py "
    "middleware utils app nodes.py node_helpers.py folder_paths.py latent_preview.py comfyui_version.py "
    "main.py protocol.py execution.py server.py cuda_malloc.py requirements.txt pyproject.toml"
).split()
PURE = ("comfy_aimdo", "torchsde", "trampoline")
COMPILED = "comfy_kitchen"
"""This one is compiled per version of Python, so its wheel is fetched."""


def bundle(comfy: Path, python: str = "3.12") -> str:
    """Writes .gpu/bundle.tar.xz; gives the command to run on the other machine.

    ValueError where the folder is no ComfyUI with an environment."""
    found = sorted(comfy.glob(".venv/lib/python3*/site-packages"))
    if not (comfy / "comfy").is_dir() or not found:
        raise ValueError(f"{comfy} is no folder of a ComfyUI with a .venv.")
    site = found[0]
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        kitchen = _wheel(site, python, Path(folder))
        with tarfile.open(FOLDER / "bundle.tar.xz", "w:xz") as archive:
            for part in PARTS:
                if (comfy / part).exists():
                    archive.add(comfy / part, f"ComfyUI/{part}", filter=_needed)
            for package in PURE:
                archive.add(site / package, f"site/{package}", filter=_needed)
            archive.add(kitchen, f"site/{COMPILED}", filter=_needed)
    size = (FOLDER / "bundle.tar.xz").stat().st_size >> 10
    return (
        f"{FOLDER / 'bundle.tar.xz'}, {size} KiB. On the machine with the GPU, in the repository:\n{COMMAND}"
    )


COMMAND = (
    "B=$(mktemp -d) && tar -C $B -xJf .gpu/bundle.tar.xz && PYTHONPATH=$B/site PYTHONUNBUFFERED=1 python3 -m "
    "bench.gpu --comfy $B/ComfyUI --out $OUT/gpu.json --minutes 4.6; "
    "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > $OUT/card.csv"
)


def _wheel(site: Path, python: str, folder: Path) -> Path:
    """The package of the wheel for a version of Python, of the version that the environment has."""
    (about,) = site.glob(f"{COMPILED}-*.dist-info")
    version = about.name.removeprefix(f"{COMPILED}-").removesuffix(".dist-info")
    ask = ["download", f"{COMPILED.replace('_', '-')}=={version}", "--no-deps", "--only-binary=:all:"]
    ask += ["--python-version", python, "--dest", str(folder)]
    ask += [
        word
        for glibc in ("2_28", "2_17")
        for word in ("--platform", f"manylinux_{glibc}_x86_64", "--platform", "manylinux2014_x86_64")
    ]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *ask], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    return folder / "wheel" / COMPILED


def _needed(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Neither compiled Python nor the vocabularies of text encoders."""
    name = entry.name
    vocabulary = "tokenizer" in name and name.endswith((".json", ".txt", ".model"))
    return None if "__pycache__" in name or vocabulary else entry
