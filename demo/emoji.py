"""Captions and pictures of the embedded picture model: Microsoft's Fluent emoji in 3-D (MIT), one or two of
them on a coloured ground.

The pictures come from the npm package @lobehub/fluent-emoji-3d, their names from unicode-emoji-json; both are
downloaded by `python -m demo.train_emoji` and never at run time. The words of a caption are embedded by a
trained table, which is this model's text encoder."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import nn

from .flux import FluxConfig
from .render import below
from .scenes import SIZE

PACKAGES = ("@lobehub/fluent-emoji-3d@1.1.0", "unicode-emoji-json@0.9.0")
GROUPS = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Activities")
GROUNDS = {
    "white": (0.97, 0.97, 0.98),
    "gray": (0.72, 0.74, 0.77),
    "beige": (0.95, 0.88, 0.76),
    "mint": (0.74, 0.92, 0.83),
    "pink": (0.98, 0.79, 0.85),
    "blue": (0.66, 0.82, 0.97),
    "violet": (0.80, 0.75, 0.95),
    "navy": (0.17, 0.21, 0.36),
}
TOKENS = 16
WIDTH = 128
PHRASES = 3
"""First object, second object, background."""
CONFIG = FluxConfig(token_dim=WIDTH, pooled_dim=PHRASES * WIDTH)
"""Of the transformer: FLUX's layout, as wide and deep as the embedded model."""
WORDS_EACH = 7
_STOP = frozenset("a an the of with in and on background".split())
_GROUND = re.compile(r"\s+on (?:an? |the )?(\w+)(?: background)?\s*$", re.I)
_AND = re.compile(r"\s+and (?:an? |the )", re.I)


def words_of(text: str) -> list[str]:
    """The words of a name or a part of a caption that carry meaning, in small letters, at most WORDS_EACH."""
    return [w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in _STOP][:WORDS_EACH]


def split_caption(caption: str) -> list[tuple[str, int]]:
    """Words of a caption with the index of their phrase: at most two objects ("and a") and a ground ("on a").

    Raises ValueError for a third object."""
    ground = _GROUND.search(caption)
    ground = ground if ground and ground[1].lower() in GROUNDS else None
    things = _AND.split(caption[: ground.start()] if ground else caption)
    if len(things) > 2:
        raise ValueError("The embedded picture model draws at most two things.")
    out = [(w, i) for i, thing in enumerate(things) for w in words_of(thing)]
    return out + ([(ground[1].lower(), 2)] if ground else [])


def a(name: str) -> str:
    """A name with its article."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def download(folder: Path) -> None:
    """Fetches and unpacks the two packages with npm into `folder`; nothing to do where they are."""
    if (folder / "emoji.npz").exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm was not found; install Node.js, which downloads the emoji pictures.")
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        done = subprocess.run(
            [npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True, check=True
        )
        with tarfile.open(folder / done.stdout.split()[-1]) as tar:
            tar.extractall(folder / package.split("@")[-2].split("/")[-1], filter="data")
    pack(folder)


def pack(folder: Path) -> None:
    """Writes the chosen pictures' files and names into `folder`/emoji.npz, a few megabytes."""
    table = json.loads((folder / "unicode-emoji-json/package/data-by-emoji.json").read_text("utf-8"))
    assets = folder / "fluent-emoji-3d/package/assets"
    names, files = [], []
    for emoji, entry in table.items():
        code = "-".join(f"{ord(c):x}" for c in emoji)
        paths = [assets / f"{c}.webp" for c in (code, code.replace("-fe0f", ""))]
        path = next((p for p in paths if p.exists()), None)
        if entry["group"] in GROUPS and path:
            names.append(entry["name"])
            files.append(path.read_bytes())
    ends = np.cumsum([len(f) for f in files])
    data = np.frombuffer(b"".join(files), np.uint8)
    np.savez(folder / "emoji.npz", names=np.array(names), ends=ends, data=data)


@dataclass
class EmojiSet:
    """Names and pictures: `full` [N,4,256,256] and `half` [N,4,128,128], premultiplied RGBA in half
    precision."""

    names: list[str]
    full: torch.Tensor
    half: torch.Tensor

    @property
    def vocabulary(self) -> list[str]:
        """All words of names and grounds, sorted."""
        return sorted({w for n in self.names for w in words_of(n)} | set(GROUNDS))


def load_emoji(folder: Path, device: str = "cpu") -> EmojiSet:
    """Reads `folder`/emoji.npz."""
    from PIL import Image

    with np.load(folder / "emoji.npz") as f:
        names, ends, data = [str(n) for n in f["names"]], f["ends"], f["data"].tobytes()
    pictures = np.empty((len(names), SIZE, SIZE, 4), np.uint8)
    for i, (lo, hi) in enumerate(zip([0, *ends[:-1]], ends)):
        pictures[i] = np.asarray(Image.open(io.BytesIO(data[lo:hi])).convert("RGBA"))
    full = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device).half() / 255
    full[:, :3] *= full[:, 3:]
    half = torch.cat([nnf.avg_pool2d(p.float(), 2).half() for p in full.split(64)])
    return EmojiSet(names, full.contiguous(), half)


@dataclass(frozen=True)
class Pictures:
    """A batch of pictures: `which` [B,2] emoji, whether there are `two` [B], the `ground` [B], the jitters
    `shift` [B,2,2] in pixels and `scale` [B,2]."""

    which: torch.Tensor
    two: torch.Tensor
    ground: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor

    def caption(self, i: int, names: list[str]) -> str:
        things = [a(names[int(self.which[i, k])]) for k in range(1 + int(self.two[i]))]
        return f"{' and '.join(things)} on a {tuple(GROUNDS)[int(self.ground[i])]} background"


def random_pictures(count: int, emoji: int, gen: torch.Generator, pairs: float = 0.25) -> Pictures:
    """Random pictures; a share `pairs` has two emoji, side by side."""

    def uniform(*shape):
        return torch.rand(*shape, generator=gen, device=gen.device)

    return Pictures(
        which=below(gen, emoji, count, 2),
        two=uniform(count) < pairs,
        ground=below(gen, len(GROUNDS), count),
        shift=uniform(count, 2, 2) * 8 - 4,
        scale=uniform(count, 2) * 0.08 - 0.04,
    )


def grounds_of(ground: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Backgrounds [B,3,size,size]: the colour, lighter in the upper middle and darker towards the corners."""
    device = ground.device
    at = (torch.arange(size, device=device) + 0.5) / size
    far = ((at[None] - 0.5) ** 2 + (at[:, None] - 0.4) ** 2) * 0.35
    colour = torch.tensor(list(GROUNDS.values()), device=device)[ground]
    return (colour[:, :, None, None] + 0.03 - far).clamp(0, 1)


def _placed(table, which, centre, scale, size: int):
    """Pictures [B,4,size,size] of emoji moved to `centre` [B,2] in -1..1 and scaled by `scale` [B]."""
    theta = torch.zeros(len(which), 2, 3, device=which.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = -centre / scale[:, None]
    grid = nnf.affine_grid(theta, (len(which), 4, size, size), align_corners=False)
    return nnf.grid_sample(table[which].float(), grid, align_corners=False)


def draw_pictures(pictures: Pictures, emoji: EmojiSet) -> torch.Tensor:
    """Pictures [B,3,256,256] in 0..1: one emoji of 0.88 of the edge, or two of 0.46 side by side."""
    out = grounds_of(pictures.ground)
    shift = pictures.shift * (2 / SIZE)
    one, two = (~pictures.two).nonzero()[:, 0], pictures.two.nonzero()[:, 0]
    parts = [
        (one, emoji.full, 0, 0.88, 0.0),
        (two, emoji.half, 0, 0.46, -0.48),
        (two, emoji.half, 1, 0.46, 0.48),
    ]
    for rows, table, k, scale, x in parts:
        if not len(rows):
            continue
        centre = shift[rows, k] + torch.tensor([x, 0.0], device=out.device)
        cut = _placed(table, pictures.which[rows, k], centre, scale + pictures.scale[rows, k] * scale, SIZE)
        out[rows] = out[rows] * (1 - cut[:, 3:]) + cut[:, :3]
    return out.clamp(0, 1)


class EmojiText(nn.Module):
    """Text encoder: words as rows of a trained table, plus their phrase.

    `forward(words)` takes [B,T] word indices (-1: none) and phrases [B,T] to tokens [B,T,WIDTH] and a pooled
    vector [B,PHRASES*WIDTH], the mean over each phrase's words."""

    def __init__(self, vocabulary: list[str]):
        super().__init__()
        self.vocabulary = list(vocabulary)
        self.index = {w: i for i, w in enumerate(self.vocabulary)}
        self.words = nn.Embedding(len(self.vocabulary), WIDTH)
        self.phrases = nn.Embedding(PHRASES, WIDTH)

    def forward(self, words, phrases):
        there = (words >= 0).float()[..., None]
        tokens = (self.words(words.clamp(min=0)) + self.phrases(phrases)) * there
        share = nnf.one_hot(phrases, PHRASES).float() * there
        pooled = torch.einsum("btp,btw->bpw", share, tokens) / share.sum(1).clamp(min=1)[..., None]
        return tokens, pooled.flatten(1)

    def indices(self, parts: list[list[tuple[str, int]]], device="cpu"):
        """Word and phrase indices [B,TOKENS] of captions already split. ValueError for an unknown word."""
        words = torch.full((len(parts), TOKENS), -1)
        phrases = torch.zeros(len(parts), TOKENS, dtype=torch.long)
        for i, part in enumerate(parts):
            for j, (word, phrase) in enumerate(part[:TOKENS]):
                if word not in self.index:
                    raise ValueError(f"The embedded picture model does not know the word '{word}'.")
                words[i, j], phrases[i, j] = self.index[word], phrase
        return words.to(device), phrases.to(device)

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditioning of captions; the empty caption gives zeros."""
        return self(*self.indices([split_caption(c) for c in captions]))
