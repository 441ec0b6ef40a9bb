"""Captions and the pictures they describe: the data of the embedded model.

A scene is one or two flat shapes on a textured background. `draw_scene` renders it, `caption_of` puts it into
words, `encode_caption` turns words into the two conditioning tensors of the FLUX.1 layout (text tokens and a
pooled vector).
Nothing is learned here: the token embedding is fixed, a one-hot word beside a one-hot phrase.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

SIZE = 256
"""Edge of a picture in pixels: 32 x 32 latent pixels, 16 x 16 packed tokens."""

COLOURS = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.98, 0.86, 0.16),
    "green": (0.14, 0.62, 0.22),
    "cyan": (0.15, 0.78, 0.84),
    "blue": (0.14, 0.28, 0.86),
    "purple": (0.50, 0.18, 0.68),
    "pink": (0.98, 0.48, 0.70),
}
BACKGROUNDS = {
    "white": (0.96, 0.96, 0.96),
    "gray": (0.56, 0.56, 0.56),
    "black": (0.08, 0.08, 0.08),
    "beige": (0.88, 0.80, 0.66),
    "navy": (0.10, 0.13, 0.30),
    "mint": (0.72, 0.90, 0.80),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
SIZES = {"small": 32.0, "medium": 46.0, "large": 62.0}
TEXTURES = ("plain", "striped", "dotted", "checkered", "gradient")
PLACES = {
    "center": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
OPPOSITE = {
    "left": "right",
    "right": "left",
    "top": "bottom",
    "bottom": "top",
    "top left": "bottom right",
    "bottom right": "top left",
    "top right": "bottom left",
    "bottom left": "top right",
}
WORDS = (*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES, *TEXTURES, "center", "left", "right", "top", "bottom")
STOP_WORDS = frozenset("a an the at in of with to background side".split())
PHRASES = 3
"""First object, second object, background."""
TOKENS = 12
TOKEN_DIM = 64
POOLED_DIM = 128
GRAY_NAMES = {"grey": "gray", "middle": "center", "centre": "center"}

assert len(WORDS) + PHRASES <= TOKEN_DIM and PHRASES * len(WORDS) <= POOLED_DIM


@dataclass(frozen=True)
class Thing:
    """One object: `size`, `colour`, `shape` and `place` are words of the vocabulary; `shift` is a jitter in
    pixels."""

    size: str
    colour: str
    shape: str
    place: str
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """One or two `Thing`s on a background `texture` of a background `colour`."""

    things: tuple[Thing, ...]
    texture: str
    colour: str


def random_scene(rng: np.random.Generator) -> Scene:
    """A random scene; a third of them has two objects, at opposite places and never large."""

    def pick(names):
        return str(rng.choice(list(names)))

    def shift():
        return tuple(float(v) for v in rng.uniform(-5, 5, 2))

    first, texture, colour = pick(COLOURS), pick(TEXTURES), pick(BACKGROUNDS)
    if rng.random() < 2 / 3:
        things = (Thing(pick(SIZES), first, pick(SHAPES), pick(PLACES), shift()),)
    else:
        place = pick(OPPOSITE)
        second = pick(c for c in COLOURS if c != first)
        things = (
            Thing(pick(("small", "medium")), first, pick(SHAPES), place, shift()),
            Thing(pick(("small", "medium")), second, pick(SHAPES), OPPOSITE[place], shift()),
        )
    return Scene(things, texture, colour)


def caption_of(scene: Scene) -> str:
    """The scene in words, e.g. `a large red circle left on a striped white background`."""
    things = " and ".join(f"a {t.size} {t.colour} {t.shape} {t.place}" for t in scene.things)
    return f"{things} on a {scene.texture} {scene.colour} background"


def read_caption(caption: str) -> list[tuple[str, int]]:
    """Words of a caption with the index of their phrase (0 and 1 objects, 2 background).

    `and` or a comma starts the second object, `on` the background. Raises ValueError for a word outside the
    vocabulary, naming the vocabulary, for a third object, and for a caption too long."""
    phrase, out = 0, []
    for word in re.findall(r"[a-z]+|,", caption.lower()):
        word = GRAY_NAMES.get(word, word)
        if word == "on":
            phrase = 2
        elif word in ("and", ","):
            if out and phrase < 2:
                phrase += 1
            if phrase == 2:
                raise ValueError(
                    "The embedded model draws at most two objects; start the background with 'on'."
                )
        elif word not in STOP_WORDS:
            if word not in WORDS:
                raise ValueError(
                    f"The embedded model does not know the word '{word}'. It knows: {', '.join(WORDS)}."
                )
            out.append((word, phrase))
    if len(out) > TOKENS:
        raise ValueError(
            f"The caption has {len(out)} words of content; the embedded model reads at most {TOKENS}."
        )
    return out


def encode_caption(caption: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed embedding of a caption: tokens [TOKENS, TOKEN_DIM] and pooled vector [POOLED_DIM], float32.

    The empty caption gives zeros, which is what the model was trained on for guidance.
    """
    tokens, pooled = torch.zeros(TOKENS, TOKEN_DIM), torch.zeros(POOLED_DIM)
    for i, (word, phrase) in enumerate(read_caption(caption)):
        w = WORDS.index(word)
        tokens[i, w] = tokens[i, len(WORDS) + phrase] = 1.0
        pooled[phrase * len(WORDS) + w] = 1.0
    return tokens, pooled


@lru_cache(maxsize=128)
def _background(texture: str, colour: str, size: int) -> np.ndarray:
    """Background picture [size, size, 3]; the second tone is the first moved towards mid gray."""
    base = np.array(BACKGROUNDS[colour], np.float32)
    other = base * 0.72 + (0.28 if base.mean() < 0.4 else 0.0)
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) * (SIZE / size)
    soft = size / SIZE

    def edge(d):
        return np.clip(d * soft + 0.5, 0, 1)

    def wave(v, period):
        return np.abs((v % period) - period / 2) - period / 4

    if texture == "striped":
        m = edge(wave(x, 64))
    elif texture == "checkered":
        a, b = edge(wave(x, 128)), edge(wave(y, 128))
        m = a * (1 - b) + b * (1 - a)
    elif texture == "dotted":
        m = edge(10 - np.hypot((x % 64) - 32, (y % 64) - 32))
    elif texture == "gradient":
        m = y / SIZE
    else:
        m = np.zeros_like(x)
    return base + m[..., None] * (other - base)


_STAR = np.array(
    [(np.sin(i * np.pi / 5) * r, -np.cos(i * np.pi / 5) * r) for i, r in zip(range(10), (1.0, 0.42) * 5)]
)
_TRIANGLE = np.array([(0.0, -0.95), (0.98, 0.8), (-0.98, 0.8)])
_ANGLE = np.linspace(0, 2 * np.pi, 64, endpoint=False)
_HEART_Y = 13 * np.cos(_ANGLE) - 5 * np.cos(2 * _ANGLE) - 2 * np.cos(3 * _ANGLE) - np.cos(4 * _ANGLE)
_HEART = np.stack([np.sin(_ANGLE) ** 3, -_HEART_Y / 16], 1)


def _polygon(x, y, points):
    """Signed distance to a polygon (negative inside); x and y in units of the radius."""
    d, inside = np.full(x.shape, 9.0, np.float32), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0)):
        ex, ey = bx - ax, by - ay
        t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        d = np.minimum(d, np.hypot(x - ax - t * ex, y - ay - t * ey))
        inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / (ey if ey else 1e-9) + ax)
    return np.where(inside, -d, d)


def _distance(shape: str, x, y):
    """Signed distance of a shape of radius 1, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 1.0
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.76) - 0.24
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.84
    if shape == "diamond":
        return (np.abs(x) * 1.25 + np.abs(y) - 1.0) / 1.6
    if shape == "cross":
        bar = np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.3)
        return np.minimum(bar, np.maximum(np.abs(x) - 0.3, np.abs(y) - 0.95))
    return _polygon(x, y, {"star": _STAR, "triangle": _TRIANGLE, "heart": _HEART}[shape])


@lru_cache(maxsize=4096)
def _mask(shape: str, radius: float, fx: float, fy: float, size: int) -> np.ndarray:
    """Anti-aliased coverage of a shape centred in a box; fx and fy are the centre's fraction of a pixel."""
    scale = size / SIZE
    half = int(np.ceil(radius * 1.1 * scale)) + 1
    y, x = np.mgrid[-half:half, -half:half].astype(np.float32) + 0.5
    r = radius * scale
    return np.clip(0.5 - _distance(shape, (x - fx) / r, (y - fy) / r) * r, 0, 1).astype(np.float32)


def draw_scene(scene: Scene, size: int = SIZE) -> np.ndarray:
    """Picture of a scene, [size, size, 3] float32 in 0..1; a smaller `size` draws the same scene smaller."""
    scale = size / SIZE
    out = _background(scene.texture, scene.colour, size).copy()
    for t in scene.things:
        radius = SIZES[t.size]
        reach = 64.0 if radius < 60 else 52.0
        cx, cy = ((SIZE / 2 + p * reach + s) * scale for p, s in zip(PLACES[t.place], t.shift))
        ix, iy = int(cx), int(cy)
        # Quarter-pixel centres let one mask serve many pictures.
        m = _mask(t.shape, radius, round((cx - ix) * 4) / 4, round((cy - iy) * 4) / 4, size)
        h = m.shape[0] // 2
        x0, y0, x1, y1 = max(ix - h, 0), max(iy - h, 0), min(ix + h, size), min(iy + h, size)
        m = m[y0 - iy + h : y1 - iy + h, x0 - ix + h : x1 - ix + h, None]
        box = out[y0:y1, x0:x1]
        box += m * (np.array(COLOURS[t.colour], np.float32) - box)
    return out
