"""Names of profiles from workflows of others: no file outside the profiles folder is read or written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import comfy_start  # before all of ComfyUI

from .rows import Deadline, Row, tried  # isort: skip

TRICKS = {
    "one folder up": "../secret",
    "many folders up": "../" * 12 + "etc/passwd",
    "up and down again": "a/../../secret",
    "absolute": "/etc/passwd",
    "Windows drive": "C:\\secret",
    "Windows folders": "..\\..\\secret",
    "network share": "\\\\host\\share\\x",
    "device": "CON",
    "device with an ending": "nul.safetensors",
    "device with a number": "COM1.profile",
    "home": "~/secret",
    "variable": "$HOME/secret",
    "percent": "%2e%2e%2fsecret",
    "zero byte": "a\x00b",
    "line break": "a\nb",
    "nothing": "",
    "dot": ".",
    "two dots": "..",
    "hidden": ".ssh",
    "very long": "x" * 5000,
    "stream": "a.safetensors:hidden",
    "url": "file:///etc/passwd",
    "glob": "*.safetensors",
    "option": "-rf",
    "full-width dots": "\uff0e\uff0e/secret",
    "overlong": "..%c0%af..%c0%afsecret",
}


def try_name(title: str) -> Row:
    """A name given to Profile Model and to Load Cache Profile."""
    files, name = comfy_start.part("nodes.comfy.profile_files"), TRICKS[title]
    said = []
    for new in (False, True):
        try:
            path = files.path_of(name, new=new)
        except ValueError as error:
            said.append(str(error))
            continue
        inside = any(path.resolve().is_relative_to(folder.resolve()) for folder in files.folders())
        if not inside or path.name.split(".")[0].upper() in files.DEVICES:
            return Row(title, False, f"{name!r} gave {path}")
        said.append(f"a file of the folder: {path.name}")
    return Row(title, all(len(s) < 300 and "\n" not in s for s in said), said[-1])


def try_link(target: str) -> Row:
    """A symbolic link in the profiles folder that leads out of it, to be read and to be added to."""
    files = comfy_start.part("nodes.comfy.profile_files")
    profile = comfy_start.part("cache_core.calibration.profile")
    folder = files.folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as outside:
        aim = Path(outside) / "victim.safetensors"
        aim.write_bytes(b"untouched")
        link = folder / "link.profile.safetensors"
        link.unlink(missing_ok=True)
        link.symlink_to(aim if target == "file" else outside, target_is_directory=target == "folder")
        wrong = []
        try:
            path = files.path_of("link")
            wrong.append(f"read through: {path}")
        except ValueError as error:
            said = str(error)
        import torch

        made = profile.Profile(torch.eye(2, dtype=torch.float64)[None], (1.0, 0.5, 0.0), {"model": "m"})
        try:
            made.add_to(files.path_of("link", new=True))
        except (ValueError, OSError) as error:
            said = str(error)
        if aim.read_bytes() != b"untouched" or [p.name for p in Path(outside).iterdir()] != [
            "victim.safetensors"
        ]:
            wrong.append("written through")
        if link.is_symlink() or link.is_file():
            link.unlink()
    return Row(f"link to a {target}", not wrong, "; ".join(wrong) or said)


def cases(names=None) -> list:
    found = [(title, partial(try_name, title)) for title in TRICKS]
    found += [(f"link to a {target}", partial(try_link, target)) for target in ("file", "folder")]
    return [case for case in found if names is None or case[0] in names]


def rows(deadline: Deadline, names=None) -> Iterator[Row]:
    """One row per trick."""
    yield from tried(cases(names), deadline)
