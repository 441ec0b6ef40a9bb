"""Scenes as tensors, drawn in batches on any device: the data of the models that are trained on a GPU.

Words are drawn by index and pictures from tables of distances, so that a training step waits for no Python
loop. One batch equals, picture for picture, what `scenes.draw_scene` draws, up to the tables' interpolation
(tests/demo/test_render.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as nnf

from . import scenes
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    OPPOSITE,
    PLACES,
    POOLED_DIM,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
    TOKEN_DIM,
    WORDS,
    Scene,
    Thing,
)

EXTENT = 1.3
"""Half the edge of a table of distances, in radii."""
_TABLE = 192
_SIZES, _COLOURS, _PLACES, _GROUNDS = (tuple(d) for d in (SIZES, COLOURS, PLACES, BACKGROUNDS))
_OPPOSITE = [_PLACES.index(OPPOSITE.get(p, p)) for p in _PLACES]


@lru_cache(maxsize=4)
def _tables(device: str) -> dict[str, torch.Tensor]:
    """Distances [8,1,192,192] of the shapes, colours [8,3], radii [3], places [9,2] in pixels of a full
    picture."""
    y, x = (np.mgrid[0:_TABLE, 0:_TABLE].astype(np.float32) + 0.5) * (2 * EXTENT / _TABLE) - EXTENT
    found = np.stack([scenes._distance(s, x, y) for s in SHAPES]).astype(np.float32)
    return {
        "distance": torch.from_numpy(found)[:, None].to(device),
        "colour": torch.tensor(list(COLOURS.values()), device=device),
        "radius": torch.tensor(list(SIZES.values()), device=device),
        "place": torch.tensor(list(PLACES.values()), dtype=torch.float32, device=device),
    }


@lru_cache(maxsize=4)
def backgrounds(size: int, device: str) -> torch.Tensor:
    """Every background [textures * colours,3,size,size], textures outside."""
    found = [scenes._background(t, c, size) for t in TEXTURES for c in _GROUNDS]
    return torch.from_numpy(np.stack(found)).float().permute(0, 3, 1, 2).contiguous().to(device)


def coverage(shape, centre, radius, size: int, wrap: bool = False) -> torch.Tensor:
    """Anti-aliased coverage [N,1,size,size] of shapes [N] at centres [N,2] (x, y) with radii [N], in pixels.

    With `wrap`, what leaves at one edge comes in at the opposite one."""
    device = str(centre.device)
    at = torch.arange(size, dtype=torch.float32, device=device) + 0.5
    scale = 1 / (radius * EXTENT)
    x, y = at[None] - centre[:, :1], at[None] - centre[:, 1:]
    if wrap:
        x, y = (torch.remainder(v + size / 2, size) - size / 2 for v in (x, y))
    x, y = x * scale[:, None], y * scale[:, None]
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], -1)
    found = nnf.grid_sample(
        _tables(device)["distance"][shape], grid, padding_mode="border", align_corners=False
    )
    return (0.5 - found * radius[:, None, None, None]).clamp(0, 1)


@dataclass(frozen=True)
class Stills:
    """A batch of scenes by index into the vocabulary's tables.

    size, colour, shape, place: [B,2], of the first and the second object.
    shift: [B,2,2], jitter in pixels.
    two: [B], whether there is a second object.
    texture, ground: [B].
    """

    size: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    place: torch.Tensor
    shift: torch.Tensor
    two: torch.Tensor
    texture: torch.Tensor
    ground: torch.Tensor

    def scene(self, i: int) -> Scene:
        """The i-th scene."""
        things = tuple(
            Thing(
                _SIZES[self.size[i, k]],
                _COLOURS[self.colour[i, k]],
                SHAPES[self.shape[i, k]],
                _PLACES[self.place[i, k]],
                tuple(self.shift[i, k].tolist()),
            )
            for k in range(1 + int(self.two[i]))
        )
        return Scene(things, TEXTURES[self.texture[i]], _GROUNDS[self.ground[i]])


def below(gen: torch.Generator, high: int, *shape: int) -> torch.Tensor:
    """Random integers from 0 to high - 1, on the generator's device."""
    return torch.randint(high, shape, generator=gen, device=gen.device)


def random_stills(count: int, gen: torch.Generator) -> Stills:
    """Random scenes, distributed as those of `scenes.random_scene`."""
    two = torch.rand(count, generator=gen, device=gen.device) > 2 / 3
    size, colour = below(gen, 3, count, 2), below(gen, 8, count, 2)
    size = torch.where(two[:, None], below(gen, 2, count, 2), size)
    other = (colour[:, 0] + 1 + below(gen, 7, count)) % 8
    place = below(gen, 9, count)
    place = torch.where(two, 1 + below(gen, 8, count), place)  # the centre has no opposite
    opposite = torch.tensor(_OPPOSITE, device=gen.device)[place]
    return Stills(
        size=size,
        colour=torch.stack([colour[:, 0], other], 1),
        shape=below(gen, 8, count, 2),
        place=torch.stack([place, opposite], 1),
        shift=torch.rand(count, 2, 2, generator=gen, device=gen.device) * 10 - 5,
        two=two,
        texture=below(gen, 5, count),
        ground=below(gen, 6, count),
    )


def draw_stills(stills: Stills, size: int = SIZE) -> torch.Tensor:
    """Pictures [B,3,size,size] in 0..1."""
    device = str(stills.size.device)
    table, scale = _tables(device), size / SIZE
    out = backgrounds(size, device)[stills.texture * len(_GROUNDS) + stills.ground]
    for k in range(2):
        radius = table["radius"][stills.size[:, k]]
        reach = torch.where(radius < 60, 64.0, 52.0)[:, None]
        centre = SIZE / 2 + table["place"][stills.place[:, k]] * reach + stills.shift[:, k]
        cover = coverage(stills.shape[:, k], centre * scale, radius * scale, size)
        if k:
            cover = cover * stills.two[:, None, None, None]
        out = torch.lerp(out, table["colour"][stills.colour[:, k]][:, :, None, None], cover)
    return out


def _words(names) -> list[int]:
    return [WORDS.index(n) for n in names]


@lru_cache(maxsize=4)
def _word_tables(device: str) -> dict[str, torch.Tensor]:
    """Indices of words: of sizes, colours, shapes, textures, grounds, and [9,2] of places (-1: no word)."""
    place = [_words(p.split()) + [-1] * (2 - len(p.split())) for p in _PLACES]
    lists = {"size": _SIZES, "colour": _COLOURS, "shape": SHAPES, "texture": TEXTURES, "ground": _GROUNDS}
    found = {k: torch.tensor(_words(v), device=device) for k, v in lists.items()}
    return {**found, "place": torch.tensor(place, device=device)}


def one_hot_tokens(words, phrases, dim: int, offset: int) -> torch.Tensor:
    """Tokens [B,T,dim] of words [B,T] (-1: no token) in phrases [T]; a phrase's one stands at `offset`."""
    present = (words >= 0)[..., None]
    tokens = torch.zeros(*words.shape, dim, device=words.device)
    tokens.scatter_(2, words.clamp(min=0)[..., None], 1.0)
    phrase = (torch.tensor(phrases, device=words.device) + offset)[None, :, None].expand(len(words), -1, 1)
    tokens.scatter_(2, phrase, 1.0)
    return tokens * present


def encode_words(words, phrases) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B,T,TOKEN_DIM] and pooled vectors [B,POOLED_DIM], as `scenes.encode_caption` gives them.

    Tokens stand at fixed places with zeros between; the model reads them without positions."""
    tokens = one_hot_tokens(words, phrases, TOKEN_DIM, len(WORDS))
    pooled = torch.zeros(len(words), POOLED_DIM, device=words.device)
    at = words.clamp(min=0) + torch.tensor(phrases, device=words.device) * len(WORDS)
    pooled.scatter_add_(1, at, (words >= 0).float())
    return tokens, pooled.clamp(max=1)


def encode_stills(stills: Stills) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditioning of scenes, see `encode_words`."""
    table = _word_tables(str(stills.size.device))
    columns, phrases = [], []
    for k in range(2):
        some = [table[n][getattr(stills, n)[:, k]] for n in ("size", "colour", "shape")]
        some += list(table["place"][stills.place[:, k]].unbind(1))
        columns += [torch.where(stills.two, w, -1) if k else w for w in some]
        phrases += [k] * 5
    columns += [table["texture"][stills.texture], table["ground"][stills.ground]]
    return encode_words(torch.stack(columns, 1), [*phrases, 2, 2])


def changed(stills: Stills, **fields) -> Stills:
    """A copy with other fields."""
    return replace(stills, **fields)
