"""Captions and the clips they describe: the data of the embedded video model.

A clip shows one or two flat shapes of `scenes` that stand still or move across a picture of 128 x 128 pixels,
over a background that the camera may pan along. What leaves at one edge comes in at the opposite one, and
nothing depends on a place: Wan's attention sees only how far tokens are apart, so that a model in its
layout hardly knows where the middle is. Directions are those on the screen; a pan moves the background alone.
With two objects both move along the same axis, half a picture apart across it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from .render import _tables, backgrounds, below, coverage, one_hot_tokens
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    GRAY_NAMES,
    SHAPES,
    SIZE,
    SIZES,
    STOP_WORDS,
    TEXTURES,
    TOKEN_DIM,
    WORDS,
)

EDGE = 128
"""Edge of a frame in pixels: 16 x 16 latent pixels."""
FRAMES = 5
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
SPEEDS = {"slow": 6.0, "fast": 14.0}
"""Pixels from one frame to the next."""
PANS = ("left", "right")
PAN_PIXELS = 8
"""Pixels from one frame to the next."""
CLIP_TEXTURES = TEXTURES[:4]
"""Without the gradient, which has a top and a bottom."""
TEXT_DIM = 4096
TOKENS = 14
PHRASES = 4
"""First object, second object, background, camera."""
NEW_WORDS = ("down", "up", "slow", "fast", "still")
_PHRASE_AT = 56
CLIP_WORDS = (*WORDS, *NEW_WORDS)
_STOP = STOP_WORDS | {"moving", "moves", "camera", "pans", "panning", "pan", "standing", "stands"}
_SIZES, _COLOURS, _GROUNDS = (tuple(d) for d in (SIZES, COLOURS, BACKGROUNDS))
_DIRECTIONS, _SPEEDS = tuple(DIRECTIONS), tuple(SPEEDS)
STILL = len(_DIRECTIONS) * len(_SPEEDS)
"""The motion that is none; below it motions are direction * 2 + speed."""

assert len(CLIP_WORDS) <= _PHRASE_AT and _PHRASE_AT + PHRASES <= TOKEN_DIM


@dataclass(frozen=True)
class Clips:
    """A batch of clips by index into the vocabulary's tables.

    size, colour, shape, motion: [B,2], of the first and the second object.
    place: [B,2], centre of the first object's path in pixels.
    phase: [B,2], shift of the background in pixels.
    two: [B], whether there is a second object.
    texture, ground: [B].
    pan: [B], 0 none, 1 left, 2 right.
    """

    size: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    motion: torch.Tensor
    place: torch.Tensor
    phase: torch.Tensor
    two: torch.Tensor
    texture: torch.Tensor
    ground: torch.Tensor
    pan: torch.Tensor

    def caption(self, i: int) -> str:
        """The i-th clip as a caption."""
        things = []
        for k in range(1 + int(self.two[i])):
            motion = int(self.motion[i, k])
            how = "still" if motion == STILL else f"moving {_DIRECTIONS[motion // 2]} {_SPEEDS[motion % 2]}"
            words = _SIZES[self.size[i, k]], _COLOURS[self.colour[i, k]], SHAPES[self.shape[i, k]]
            things.append(f"a {' '.join(words)} {how}")
        ground = f"on a {TEXTURES[self.texture[i]]} {_GROUNDS[self.ground[i]]} background"
        pan = f", camera pans {PANS[int(self.pan[i]) - 1]}" if self.pan[i] else ""
        return f"{' and '.join(things)} {ground}{pan}"


def random_clips(count: int, gen: torch.Generator) -> Clips:
    """Random clips; a third has two objects, half of those with stripes, dots or checks a pan."""
    two = torch.rand(count, generator=gen, device=gen.device) > 2 / 3
    size = torch.where(two[:, None], below(gen, 2, count, 2), below(gen, 3, count, 2))
    colour = below(gen, 8, count)
    other = (colour + 1 + below(gen, 7, count)) % 8
    motion = below(gen, STILL + 1, count)
    # The second object keeps the first one's axis: directions 0, 1 are horizontal and 2, 3 vertical.
    axis = torch.where(motion == STILL, below(gen, 2, count), motion // 4)
    second = torch.where(below(gen, 5, count) == 0, STILL, axis * 4 + below(gen, 4, count))
    texture = below(gen, len(CLIP_TEXTURES), count)
    panned = (texture >= 1) & (below(gen, 2, count) == 1)
    return Clips(
        size=size,
        colour=torch.stack([colour, other], 1),
        shape=below(gen, 8, count, 2),
        motion=torch.stack([motion, second], 1),
        place=torch.rand(count, 2, generator=gen, device=gen.device) * EDGE,
        phase=below(gen, EDGE, count, 2),
        two=two,
        texture=texture,
        ground=below(gen, 6, count),
        pan=torch.where(panned, 1 + below(gen, 2, count), 0),
    )


def _centres(clips: Clips, k: int) -> torch.Tensor:
    """Centres [B,FRAMES,2] of the k-th objects in pixels."""
    device = clips.two.device
    ways = [DIRECTIONS[d] for d in _DIRECTIONS for _ in _SPEEDS] + [(0, 0)]
    speeds = [SPEEDS[s] for _ in _DIRECTIONS for s in _SPEEDS] + [0.0]
    step = torch.tensor(ways, device=device) * torch.tensor(speeds, device=device)[:, None]
    times = torch.arange(FRAMES, device=device) - (FRAMES - 1) / 2
    path = step[clips.motion[:, k]][:, None] * times[None, :, None]
    vertical = ((clips.motion % STILL) >= 4).any(1)[:, None]
    across = torch.where(vertical, torch.tensor([1, 0], device=device), torch.tensor([0, 1], device=device))
    return path + (clips.place + k * EDGE / 2 * across)[:, None]


def draw_clips(clips: Clips) -> torch.Tensor:
    """Clips [B,FRAMES,3,128,128] in 0..1."""
    device = str(clips.two.device)
    table, count = _tables(device), len(clips.two)
    ground = backgrounds(EDGE, device)[clips.texture * len(_GROUNDS) + clips.ground]
    # A camera that pans left shows more of what lies on the left: the background moves right.
    way = torch.tensor([0, 1, -1], device=device)[clips.pan] * PAN_PIXELS
    at, times = torch.arange(EDGE, device=device), torch.arange(FRAMES, device=device)
    row = ((at[None] - clips.phase[:, 1:]) % EDGE)[:, None, :, None].expand(-1, 3, -1, EDGE)
    ground = ground.gather(2, row)
    column = (at - clips.phase[:, :1, None] - way[:, None, None] * times[None, :, None]) % EDGE
    index = column[:, :, None, None].expand(-1, -1, 3, EDGE, -1)
    out = ground[:, None].expand(-1, FRAMES, -1, -1, -1).gather(4, index)
    for k in range(2):
        radius = (table["radius"][clips.size[:, k]] * (EDGE / SIZE)).repeat_interleave(FRAMES)
        shape = clips.shape[:, k].repeat_interleave(FRAMES)
        cover = coverage(shape, _centres(clips, k).flatten(0, 1), radius, EDGE, wrap=True)
        cover = cover.view(count, FRAMES, 1, EDGE, EDGE)
        if k:
            cover = cover * clips.two[:, None, None, None, None]
        out = torch.lerp(out, table["colour"][clips.colour[:, k]][:, None, :, None, None], cover)
    return out


def _columns(clips: Clips) -> tuple[torch.Tensor, list[int]]:
    """Words [B,TOKENS] of clips (-1: none) and their phrases."""
    device = clips.two.device

    def table(names):
        return torch.tensor([CLIP_WORDS.index(n) if n else -1 for n in names], device=device)

    way = table([d for d in _DIRECTIONS for _ in _SPEEDS] + ["still"])
    speed = table([s for _ in _DIRECTIONS for s in _SPEEDS] + [""])
    columns, phrases = [], []
    for k in range(2):
        some = [table(n)[v[:, k]] for n, v in ((_SIZES, clips.size), (_COLOURS, clips.colour))]
        some.append(table(SHAPES)[clips.shape[:, k]])
        some += [way[clips.motion[:, k]], speed[clips.motion[:, k]]]
        columns += [torch.where(clips.two, w, -1) if k else w for w in some]
        phrases += [k] * 5
    columns += [table(TEXTURES)[clips.texture], table(_GROUNDS)[clips.ground]]
    columns.append(table(("", *PANS))[clips.pan])
    return torch.stack(columns, 1), [*phrases, 2, 2, 3]


def encode_clips(clips: Clips, dim: int = TEXT_DIM) -> torch.Tensor:
    """Tokens [B,13,dim] of clips: a one-hot word beside a one-hot phrase, the rest zero."""
    words, phrases = _columns(clips)
    return one_hot_tokens(words, phrases, dim, _PHRASE_AT)


def read_clip_caption(caption: str) -> list[tuple[str, int]]:
    """Words of a caption with the index of their phrase (0 and 1 objects, 2 background, 3 camera).

    `and` starts the second object, `on` the background, `camera` the pan. Raises ValueError for a word
    outside the vocabulary, a third object and a caption too long."""
    phrase, out = 0, []
    for word in re.findall(r"[a-z]+", caption.lower()):
        word = GRAY_NAMES.get(word, word)
        if word in ("camera", "on"):
            phrase = 3 if word == "camera" else 2
        elif word == "and" and out:
            phrase += 1
            if phrase > 1:
                raise ValueError("The embedded video model draws at most two objects.")
        elif word not in _STOP and word != "and":
            if word not in CLIP_WORDS:
                raise ValueError(
                    f"The embedded video model does not know the word '{word}'. It knows: "
                    f"{', '.join(CLIP_WORDS)}."
                )
            out.append((word, phrase))
    if len(out) > TOKENS:
        raise ValueError(f"The caption has {len(out)} words; the embedded video model reads {TOKENS}.")
    return out


def encode_clip_caption(caption: str, dim: int = TEXT_DIM) -> torch.Tensor:
    """Tokens [TOKENS,dim] of a caption; the empty caption gives zeros, as in training for guidance."""
    tokens = torch.zeros(TOKENS, dim)
    for i, (word, phrase) in enumerate(read_clip_caption(caption)):
        tokens[i, CLIP_WORDS.index(word)] = tokens[i, _PHRASE_AT + phrase] = 1.0
    return tokens
