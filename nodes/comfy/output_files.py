"""Files that our nodes leave in ComfyUI's folders: pictures to show and reports to keep, under names that
stay in their folder."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import numpy
import torch
from PIL import Image

from .profile_files import DEVICES

LONGEST = 100
"""Letters of a file's or a folder's name."""


def as_picture(pixels: torch.Tensor) -> Image.Image:
    """A picture [H,W,3] in 0..1."""
    return Image.fromarray((pixels.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def as_image(picture: Image.Image) -> torch.Tensor:
    """An IMAGE [1,H,W,3] of a picture."""
    return torch.from_numpy(numpy.asarray(picture.convert("RGB"), dtype=numpy.float32) / 255)[None]


def show(pictures: list[Image.Image], name: str) -> list[dict]:
    """Writes pictures into ComfyUI's temporary folder; where they are, as /view asks for it."""
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    run, files = uuid.uuid4().hex[:12], []
    for i, picture in enumerate(pictures):
        file = f"dual_cache_{name}_{run}_{i}.png"
        picture.save(folder / file, compress_level=1)
        files.append({"filename": file, "subfolder": "", "type": "temp"})
    return files


def check_prefix(prefix: str) -> str:
    """The prefix of a file name, with folders in front of it or without; ValueError where it could leave
    ComfyUI's output folder."""
    parts = re.split(r"[/\\]", prefix.strip())
    if not all(
        re.fullmatch(rf"\w[\w .()+%-]{{0,{LONGEST - 1}}}", part)
        and part.split(".")[0].upper() not in DEVICES
        and not part.endswith((".", " "))
        for part in parts
    ):
        raise ValueError(
            "file_name must be a name such as dual_cache/report: letters, digits, blanks, dots and "
            "dashes; / makes a folder."
        )
    return "/".join(parts)


def keep(text: str, prefix: str, ending: str = "json") -> str:
    """Writes a text into ComfyUI's output folder under the next free number; its path below that folder."""
    import folder_paths

    output, prefix = Path(folder_paths.get_output_directory()), check_prefix(prefix)
    if not (output / prefix).parent.resolve().is_relative_to(output.resolve()):
        raise ValueError(
            "file_name leads out of the output folder: a folder there is a link to another place."
        )
    folder, name, number, subfolder, _ = folder_paths.get_save_image_path(prefix, str(output))
    while True:
        file = Path(folder) / f"{name}_{number:05}_.{ending}"
        try:
            with file.open("x", encoding="utf-8") as out:
                out.write(text)
        except FileExistsError:
            number += 1
            continue
        return (Path(subfolder) / file.name).as_posix()
