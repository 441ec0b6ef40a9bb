"""A small rectified-flow transformer for clips in Wan 2.1's state-dict layout (Wan team 2025, arXiv
2503.20314), for runs without ComfyUI.

Widths and depths are free; parameter names, block order, modulation, normalisation and the three-axis rotary
embedding are Wan's, so that ComfyUI's own loader detects and runs the same file. ComfyUI fixes the width of
text tokens at 4096; the columns that no caption uses stay zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as nnf
from torch import nn

from .flux import attention, rotary

PATCH = (1, 2, 2)
FREQUENCIES = 256
HEAD = 128


@dataclass(frozen=True)
class WanConfig:
    """Sizes of the transformer; `dim` is a multiple of the head width 128."""

    dim: int = 256
    ffn: int = 1024
    layers: int = 6
    text_dim: int = 4096
    channels: int = 16

    @property
    def heads(self) -> int:
        return self.dim // HEAD


def time_frequencies(t: torch.Tensor) -> torch.Tensor:
    """Sinusoidal embedding [B,256] of a time in 0..1000."""
    half = FREQUENCIES // 2
    powers = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = torch.outer(t.float(), torch.pow(10000.0, -powers))
    return torch.cat([angles.cos(), angles.sin()], 1)


@lru_cache(maxsize=8)
def clip_positions(frames: int, h: int, w: int, device) -> torch.Tensor:
    """Rotary matrices [1,1,N,D/2,2,2] of a grid of frames x h x w tokens."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in (frames, h, w)]
    ids = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, 3)
    side = 2 * (HEAD // 6)
    return rotary(ids, (HEAD - 2 * side, side, side), 10000.0)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width, as Wan norms queries and keys."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return nnf.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), eps=1e-6)


class WanAttention(nn.Module):
    """Attention of x [B,N,dim] to itself, or to `context` [B,T,dim]; queries and keys of x are rotated by
    `freqs`."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)

    def _split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x, freqs=None, context=None, transformer_options=None):
        source = x if context is None else context
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(source)), self.v(source)
        q, k, v = self._split(q).to(v.dtype), self._split(k).to(v.dtype), self._split(v)
        return self.o(attention(q, k, v, pe=freqs, transformer_options=transformer_options))


class WanAttentionBlock(nn.Module):
    """Self-attention, cross-attention to the text and MLP; returns x [B,N,dim]."""

    def __init__(self, config: WanConfig):
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.self_attn = WanAttention(dim, config.heads)
        self.norm3 = nn.LayerNorm(dim, 1e-6)
        self.cross_attn = WanAttention(dim, config.heads)
        self.norm2 = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn), nn.GELU(approximate="tanh"), nn.Linear(config.ffn, dim)
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))

    def forward(self, x, e, freqs, context, transformer_options=None):
        options = transformer_options
        e = (self.modulation.to(x.dtype) + e).chunk(6, 1)
        y = torch.addcmul(e[0], self.norm1(x), 1 + e[1])
        x = torch.addcmul(x, self.self_attn(y, freqs, transformer_options=options), e[2])
        x = x + self.cross_attn(self.norm3(x), context=context, transformer_options=options)
        return torch.addcmul(x, self.ffn(torch.addcmul(e[3], self.norm2(x), 1 + e[4])), e[5])


class Head(nn.Module):
    """Modulated projection of tokens onto latent patches."""

    def __init__(self, config: WanConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, 1e-6, elementwise_affine=False)
        self.head = nn.Linear(config.dim, math.prod(PATCH) * config.channels)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x, e):
        shift, scale = (self.modulation.to(x.dtype) + e[:, None]).chunk(2, 1)
        return self.head(torch.addcmul(shift, self.norm(x), 1 + scale))


class WanModel(nn.Module):
    """Velocity of a clip: `forward(x, timestep, context)` gives [B,16,F,h,w].

    x [B,16,F,h,w] with even h and w, timestep [B] in 0..1000 (1000 times the noise level), context
    [B,T,text_dim]."""

    def __init__(self, config: WanConfig = WanConfig()):
        super().__init__()
        self.config, dim = config, config.dim
        self.patch_embedding = nn.Conv3d(config.channels, dim, PATCH, PATCH)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(WanAttentionBlock(config) for _ in range(config.layers))
        self.head = Head(config)

    def start_training(self) -> None:
        """Zero gates, output and unused text columns: blocks begin without self-attention and MLP."""
        for p in (self.time_projection[1].weight, self.time_projection[1].bias, self.head.head.weight):
            nn.init.zeros_(p)
        nn.init.zeros_(self.head.head.bias)
        nn.init.zeros_(self.text_embedding[0].weight)
        nn.init.normal_(self.text_embedding[0].weight[:, :64], std=0.1)

    def forward(self, x, timestep, context, transformer_options=None):
        b, c, f, h, w = x.shape
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)
        e = self.time_embedding(time_frequencies(timestep).to(x.dtype))
        e0 = self.time_projection(e).unflatten(1, (6, -1))
        context = self.text_embedding(context)
        freqs = clip_positions(f, h // 2, w // 2, x.device)
        for block in self.blocks:
            x = block(x, e=e0, freqs=freqs, context=context, transformer_options=transformer_options)
        x = self.head(x, e).view(b, f, h // 2, w // 2, 2, 2, c)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(b, c, f, h, w)
