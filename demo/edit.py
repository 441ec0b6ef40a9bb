"""The embedded edit model: FLUX Kontext's way of editing (Black Forest Labs 2025, arXiv 2506.15742) in small.

The latent of a reference picture stands behind the image tokens, at the same places but with 1 as its first
position, and never changes during sampling. An instruction names an object and what is to change. ComfyUI
runs the same file as FLUX with a ReferenceLatent node."""

from __future__ import annotations

import re
from functools import lru_cache

import torch

from .flux import Flux, positions, rotary, timestep_embedding
from .render import Stills, below, changed, encode_words
from .render import _word_tables as word_tables
from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, encode_caption

CHANGES = ("colour", "place", "shape", "background")
_OBJECT = re.compile(r"(?:make|turn|move) the (\w+) (\w+) (?:to |into |a |the )*([\w ]+)", re.I)
_GROUND = re.compile(r"(?:make|turn) the background (\w+)", re.I)


@lru_cache(maxsize=8)
def reference_positions(h: int, w: int, step: float, axes, theta: float, device) -> torch.Tensor:
    """Rotary matrices of a reference's h x w tokens: those of the picture's, with 1 as first position."""
    ids = torch.zeros(h, w, 3, device=device)
    ids[..., 0] = 1
    offset = (step - 1) / 2
    ids[..., 1] += torch.arange(h, device=device)[:, None] * step + offset
    ids[..., 2] += torch.arange(w, device=device)[None] * step + offset
    return rotary(ids.reshape(1, -1, 3), axes, theta)


def patches(x: torch.Tensor) -> torch.Tensor:
    """Latent [B,C,h,w] as tokens [B,h*w/4,4*C]."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


class FluxEdit(Flux):
    """FLUX with a reference: `forward(x, timestep, context, y, reference)` gives [B,16,h,w].

    reference [B,16,h,w] is a latent in the model's space; without it this is plain FLUX."""

    def forward(
        self, x, timestep, context, y, reference=None, transformer_options=None, grid_step: float = 1.0
    ):
        if reference is None:
            return super().forward(x, timestep, context, y, transformer_options, grid_step)
        b, c, h, w = x.shape
        own, options, size = h * w // 4, transformer_options, self.config
        img = self.img_in(torch.cat([patches(x), patches(reference)], 1))
        txt = self.txt_in(context)
        vec = self.time_in(timestep_embedding(timestep).to(img.dtype)) + self.vector_in(y)
        n = txt.shape[1]
        places = positions(h // 2, w // 2, n, grid_step, size.axes, size.theta, x.device)
        rh, rw = reference.shape[2] // 2, reference.shape[3] // 2
        pe = torch.cat(
            [places, reference_positions(rh, rw, grid_step, size.axes, size.theta, x.device)], dim=2
        )
        for block in self.double_blocks:
            img, txt = block(img=img, txt=txt, vec=vec, pe=pe, transformer_options=options)
        x = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            x = block(x, vec=vec, pe=pe, transformer_options=options)
        out = self.final_layer(x[:, n : n + own], vec)
        return out.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def encode_instruction(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditioning of an instruction, as `scenes.encode_caption` gives it for captions.

    Known are "make the red circle blue", "move the red circle to top left", "turn the red circle into a star"
    and "make the background gray"; the empty instruction gives zeros. Raises ValueError for others."""
    if not text.strip():
        return encode_caption("")
    ground = _GROUND.fullmatch(text.strip())
    if ground and ground[1].lower() in BACKGROUNDS:
        return encode_caption(f"on {ground[1]}")
    found = _OBJECT.fullmatch(text.strip())
    if (
        found
        and found[1].lower() in COLOURS
        and found[2].lower() in SHAPES
        and found[3].lower() in (*COLOURS, *PLACES, *SHAPES)
    ):
        return encode_caption(f"{found[1]} {found[2]} and {found[3]}")
    raise ValueError(
        f"The embedded edit model does not know the instruction '{text}'. It knows: make the red circle "
        "blue; move the red circle to top left; turn the red circle into a star; make the background gray."
    )


class Edits:
    """A batch of edits: the scenes `before` and `after`, which object and what `change` [B] (an index into
    CHANGES)."""

    def __init__(self, before: Stills, after: Stills, which: torch.Tensor, change: torch.Tensor):
        self.before, self.after, self.which, self.change = before, after, which, change

    def instruction(self, i: int) -> str:
        """The i-th edit as an instruction."""
        old = self.before.scene(i).things[int(self.which[i])]
        new = self.after.scene(i)
        thing = new.things[int(self.which[i])]
        return {
            "colour": f"make the {old.colour} {old.shape} {thing.colour}",
            "place": f"move the {old.colour} {old.shape} to {thing.place}",
            "shape": f"turn the {old.colour} {old.shape} into a {thing.shape}",
            "background": f"make the background {new.colour}",
        }[CHANGES[int(self.change[i])]]


def random_edits(before: Stills, gen: torch.Generator) -> Edits:
    """One random change to each scene. Only single objects are moved, so that none covers the other."""
    count, device = len(before.two), gen.device
    which = torch.where(before.two, below(gen, 2, count), 0)
    change = below(gen, len(CHANGES), count)
    change = torch.where(before.two & (change == 1), 0, change)
    mine = torch.arange(2, device=device)[None] == which[:, None]

    def other(values, high):
        return (values + 1 + below(gen, high - 1, *values.shape)) % high

    def where(kind, values, high):
        return torch.where(mine & (change == kind)[:, None], other(values, high), values)

    colour = where(0, before.colour, 8)
    # The two objects keep different colours, by which an instruction tells them apart.
    same = before.two & (colour[:, 0] == colour[:, 1])
    colour = torch.where(same[:, None] & mine, before.colour, colour)
    change = torch.where(same, len(CHANGES) - 1, change)
    after = changed(
        before,
        colour=colour,
        place=where(1, before.place, 9),
        shape=where(2, before.shape, 8),
        ground=torch.where(change == 3, other(before.ground, 6), before.ground),
    )
    return Edits(before, after, which, change)


def encode_edits(edits: Edits) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditioning of edits, as `encode_instruction` gives it."""
    table = word_tables(str(edits.which.device))
    row = torch.arange(len(edits.which), device=edits.which.device)

    def of(stills, name):
        return getattr(stills, name)[row, edits.which]

    ground = edits.change == 3
    thing = [table[n][of(edits.before, n)] for n in ("colour", "shape")]
    thing = [torch.where(ground, -1, w) for w in thing]
    place = table["place"][of(edits.after, "place")].unbind(1)
    new = [table["colour"][of(edits.after, "colour")], *place, table["shape"][of(edits.after, "shape")]]
    kinds = (0, 1, 1, 2)
    new = [torch.where(edits.change == k, w, -1) for k, w in zip(kinds, new)]
    back = torch.where(ground, table["ground"][edits.after.ground], -1)
    return encode_words(torch.stack([*thing, *new, back], 1), [0, 0, 1, 1, 1, 1, 2])
