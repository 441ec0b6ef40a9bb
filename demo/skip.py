"""A variant of the embedded model with long skips, after Skip-DiT (Chen et al. 2024, arXiv 2411.17616).

A late single block reads, beside its input x, what an early block gave: x becomes W LN([x; skip]). The claim
of that paper is that skips make features change less from step to step, so that caches err less; a twin
without skips is trained alike, so that the claim can be measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .edit import patches
from .flux import Flux, FluxConfig, SingleStreamBlock, positions, timestep_embedding


@dataclass(frozen=True)
class SkipConfig(FluxConfig):
    """Sizes of the variant; `skips` of the late blocks read early ones."""

    double: int = 2
    single: int = 4
    skips: int = 2


class SkipBlock(SingleStreamBlock):
    """A single block that first joins its input with a skip of the same shape."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.skip_norm = nn.LayerNorm(2 * dim, eps=1e-6)
        self.skip_linear = nn.Linear(2 * dim, dim)

    def forward(self, x, vec, pe, skip=None, attn_mask=None, transformer_options=None):
        if skip is not None:
            x = self.skip_linear(self.skip_norm(torch.cat((x, skip), -1)))
        return super().forward(x, vec, pe, attn_mask, transformer_options)


class SkipFlux(Flux):
    """FLUX whose last `skips` single blocks read the first blocks' outputs, the last block the first one's.

    Raises ValueError where a skip would not lead from an earlier block to a later one."""

    def __init__(self, config: SkipConfig = SkipConfig()):
        super().__init__(config)
        plain = config.single - config.skips
        if plain < 0 or config.skips >= config.double + plain:
            raise ValueError("A skip must lead from an earlier block to a later one.")
        late = (SkipBlock(config.hidden, config.heads) for _ in range(config.skips))
        self.single_blocks = nn.ModuleList([*self.single_blocks[:plain], *late])

    def forward(self, x, timestep, context, y, transformer_options=None, grid_step: float = 1.0):
        b, c, h, w = x.shape
        options, size = transformer_options, self.config
        img, txt = self.img_in(patches(x)), self.txt_in(context)
        vec = self.time_in(timestep_embedding(timestep).to(img.dtype)) + self.vector_in(y)
        n = txt.shape[1]
        pe = positions(h // 2, w // 2, n, grid_step, size.axes, size.theta, x.device)
        early = []
        for block in self.double_blocks:
            img, txt = block(img=img, txt=txt, vec=vec, pe=pe, transformer_options=options)
            early.append(torch.cat((txt, img), 1))
        x = torch.cat((txt, img), 1)
        for i, block in enumerate(self.single_blocks):
            left = len(self.single_blocks) - i
            if left <= size.skips:
                x = block(x, vec=vec, pe=pe, skip=early[left - 1], transformer_options=options)
            else:
                x = block(x, vec=vec, pe=pe, transformer_options=options)
                early.append(x)
        out = self.final_layer(x[:, n:], vec)
        return out.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
