"""Every name of ComfyUI that the pack uses exists in the ComfyUI of COMFYUI_UNDER_TEST, and every call of one
fits its signature: read from the files by comfy-import-guard, without running either."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from comfy_import_guard.report import check_pack
from comfy_import_guard.resolve import Resolver
from comfy_import_guard.signature import SignatureResolver

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("__init__.py", "web_files.py", "cache_core", "nodes")


class Folder:
    """A ComfyUI folder, as comfy-import-guard asks its clone for files."""

    def __init__(self, path: Path):
        self.path = path

    def read_file(self, ref: str, path: str) -> str | None:
        """The text of a file, or None."""
        file = self.path / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def is_dir(self, ref: str, path: str) -> bool:
        """Whether a folder is there."""
        return (self.path / path).is_dir()


@pytest.fixture
def check(tmp_path):
    """`check(link, ...)`: what comfy-import-guard finds in a pack of these files and folders."""
    resolver = Resolver(Folder(Path(os.environ["COMFYUI_UNDER_TEST"])), "the folder")

    def run(*parts: Path) -> dict:
        pack = tmp_path / "pack"
        for part in parts:
            copy_into(part, pack)
        return check_pack(resolver, "pack", str(pack), None, SignatureResolver(resolver))

    return run


def copy_into(part: Path, pack: Path) -> None:
    """Copies a Python file, or those of a folder."""
    for file in sorted(part.rglob("*.py")) if part.is_dir() else [part]:
        target = pack / file.relative_to(part.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")


def test_every_name_that_the_pack_uses_is_there(check):
    found = check(*(ROOT / name for name in SHIPPED))
    assert found["references"] > 20 and not found["unparseable"]
    assert not found["breaking"], found["breaking"]
    assert not found["signature_drift"], found["signature_drift"]


def test_a_name_that_is_gone_is_found(check, tmp_path):
    file = tmp_path / "made.py"
    file.write_text("from comfy.samplers import no_such_name\n", encoding="utf-8")
    assert [row["symbol"] for row in check(file)["breaking"]] == ["no_such_name"]
