"""A small rectified-flow transformer in FLUX.1's state-dict layout (Black Forest Labs 2024), for runs without
ComfyUI.

Widths and depths are free; parameter names, block order, modulation and rotary embedding are FLUX.1's, so
that ComfyUI's own loader detects and runs the same file. Attention and modules are called in FLUX's order, in
the names the cache's registry uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as nnf
from torch import nn

from .scenes import POOLED_DIM, TOKEN_DIM


@dataclass(frozen=True)
class FluxConfig:
    """Sizes of the transformer; `hidden` is a multiple of the head width 128, which is the sum of `axes`."""

    hidden: int = 256
    double: int = 3
    single: int = 6
    token_dim: int = TOKEN_DIM
    pooled_dim: int = POOLED_DIM
    channels: int = 16
    axes: tuple[int, int, int] = (16, 56, 56)
    theta: float = 10000.0

    @property
    def heads(self) -> int:
        return self.hidden // sum(self.axes)


def timestep_embedding(t: torch.Tensor, dim: int = 256) -> torch.Tensor:
    """Sinusoidal embedding [B, dim] of a time in 0..1 (scaled by 1000, as FLUX does)."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    args = 1000.0 * t.float()[:, None] * freqs
    return torch.cat([torch.cos(args), torch.sin(args)], -1)


def rotary(ids: torch.Tensor, axes, theta: float) -> torch.Tensor:
    """Rotation matrices [B, 1, N, D/2, 2, 2] for positions ids [B, N, axes]."""
    parts = []
    for i, dim in enumerate(axes):
        omega = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim)
        a = ids[..., i].double()[..., None] * omega
        parts.append(torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()], -1).reshape(*a.shape, 2, 2).float())
    return torch.cat(parts, -3).unsqueeze(1)


@lru_cache(maxsize=8)
def positions(h: int, w: int, n_txt: int, step: float, axes, theta: float, device) -> torch.Tensor:
    """Rotary matrices for `n_txt` unplaced text tokens and an h x w grid; a step of 2 spreads a coarse grid
    over a fine one."""
    ids = torch.zeros(h, w, 3, device=device)
    offset = (step - 1) / 2
    ids[..., 1] += torch.arange(h, device=device)[:, None] * step + offset
    ids[..., 2] += torch.arange(w, device=device)[None] * step + offset
    ids = torch.cat([torch.zeros(n_txt, 3, device=device), ids.reshape(-1, 3)])
    return rotary(ids[None], axes, theta)


def _rotate(x, pe):
    pair = x.float().reshape(*x.shape[:-1], -1, 1, 2)
    return (pe[..., 0] * pair[..., 0] + pe[..., 1] * pair[..., 1]).reshape(x.shape).to(x.dtype)


def attention(q, k, v, pe=None, transformer_options=None):
    """Rotated attention on [B, heads, N, D] -> [B, N, heads*D]; honours ComfyUI's
    `optimized_attention_override`."""
    if pe is not None:
        q, k = _rotate(q, pe), _rotate(k, pe)

    def run(q, k, v, heads=None, mask=None, **kw):
        out = nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)

    override = (transformer_options or {}).get("optimized_attention_override")
    if override is None:
        return run(q, k, v)
    return override(
        run, q, k, v, q.shape[1], mask=None, skip_reshape=True, transformer_options=transformer_options
    )


class MLPEmbedder(nn.Module):
    def __init__(self, n_in, hidden):
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(n_in, hidden), nn.Linear(hidden, hidden)

    def forward(self, x):
        return self.out_layer(nnf.silu(self.in_layer(x)))


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return nnf.rms_norm(x, self.scale.shape, self.scale.to(x.dtype), eps=1e-6)


class QKNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.query_norm, self.key_norm = RMSNorm(dim), RMSNorm(dim)

    def forward(self, q, k, v):
        return self.query_norm(q).to(v), self.key_norm(k).to(v)


class SelfAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.qkv, self.norm, self.proj = nn.Linear(dim, dim * 3), QKNorm(dim // heads), nn.Linear(dim, dim)


@dataclass
class ModulationOut:
    shift: torch.Tensor
    scale: torch.Tensor
    gate: torch.Tensor


class Modulation(nn.Module):
    def __init__(self, dim, double):
        super().__init__()
        self.is_double = double
        self.lin = nn.Linear(dim, dim * (6 if double else 3))

    def forward(self, vec):
        out = self.lin(nnf.silu(vec))[:, None].chunk(6 if self.is_double else 3, -1)
        return ModulationOut(*out[:3]), ModulationOut(*out[3:]) if self.is_double else None


def _mlp(dim):
    return nn.Sequential(nn.Linear(dim, dim * 4), nn.GELU(approximate="tanh"), nn.Linear(dim * 4, dim))


def _heads(qkv, heads):
    return qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)


class DoubleStreamBlock(nn.Module):
    """Joint attention of text and image with separate weights; returns (img, txt)."""

    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads, self.hidden_size, self.modulation = heads, dim, True
        for s in ("img", "txt"):
            setattr(self, f"{s}_mod", Modulation(dim, True))
            setattr(self, f"{s}_norm1", nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6))
            setattr(self, f"{s}_attn", SelfAttention(dim, heads))
            setattr(self, f"{s}_norm2", nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6))
            setattr(self, f"{s}_mlp", _mlp(dim))

    def forward(self, img, txt, vec, pe, attn_mask=None, transformer_options=None):
        i1, i2 = self.img_mod(vec)
        t1, t2 = self.txt_mod(vec)
        qi, ki, vi = _heads(
            self.img_attn.qkv(torch.addcmul(i1.shift, self.img_norm1(img), 1 + i1.scale)), self.num_heads
        )
        qt, kt, vt = _heads(
            self.txt_attn.qkv(torch.addcmul(t1.shift, self.txt_norm1(txt), 1 + t1.scale)), self.num_heads
        )
        qi, ki = self.img_attn.norm(qi, ki, vi)
        qt, kt = self.txt_attn.norm(qt, kt, vt)
        both = [torch.cat(p, 2) for p in ((qt, qi), (kt, ki), (vt, vi))]
        out = attention(*both, pe=pe, transformer_options=transformer_options)
        n = txt.shape[1]
        img = img + self.img_attn.proj(out[:, n:]) * i1.gate
        img = img + self.img_mlp(torch.addcmul(i2.shift, self.img_norm2(img), 1 + i2.scale)) * i2.gate
        txt = txt + self.txt_attn.proj(out[:, :n]) * t1.gate
        txt = txt + self.txt_mlp(torch.addcmul(t2.shift, self.txt_norm2(txt), 1 + t2.scale)) * t2.gate
        return img, txt


class SingleStreamBlock(nn.Module):
    """Parallel attention and MLP on text and image together; returns x."""

    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads, self.hidden_size, self.mlp_hidden_dim = heads, dim, dim * 4
        self.linear1, self.linear2 = nn.Linear(dim, dim * 7), nn.Linear(dim * 5, dim)
        self.norm = QKNorm(dim // heads)
        self.pre_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp_act = nn.GELU(approximate="tanh")
        self.modulation = Modulation(dim, False)

    def forward(self, x, vec, pe, attn_mask=None, transformer_options=None):
        mod, _ = self.modulation(vec)
        qkv, mlp = self.linear1(torch.addcmul(mod.shift, self.pre_norm(x), 1 + mod.scale)).split(
            [3 * self.hidden_size, self.mlp_hidden_dim], -1
        )
        q, k, v = _heads(qkv, self.num_heads)
        q, k = self.norm(q, k, v)
        attn = attention(q, k, v, pe=pe, transformer_options=transformer_options)
        return x + self.linear2(torch.cat((attn, self.mlp_act(mlp)), 2)) * mod.gate


class LastLayer(nn.Module):
    def __init__(self, dim, n_out):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, n_out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, vec):
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, -1)
        return self.linear(torch.addcmul(shift, self.norm_final(x), 1 + scale))


class Flux(nn.Module):
    """Velocity of a latent: `forward(x, timestep, context, y)` gives [B,16,h,w].

    x [B,16,h,w], timestep [B] in 0..1, context [B,T,token_dim], y [B,pooled_dim].
    """

    def __init__(self, config: FluxConfig = FluxConfig()):
        super().__init__()
        self.config, dim = config, config.hidden
        self.img_in = nn.Linear(config.channels * 4, dim)
        self.time_in = MLPEmbedder(256, dim)
        self.vector_in = MLPEmbedder(config.pooled_dim, dim)
        self.txt_in = nn.Linear(config.token_dim, dim)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(dim, config.heads) for _ in range(config.double))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(dim, config.heads) for _ in range(config.single))
        self.final_layer = LastLayer(dim, config.channels * 4)

    def forward(self, x, timestep, context, y, transformer_options=None, grid_step: float = 1.0):
        b, c, h, w = x.shape
        img = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)
        img, txt = self.img_in(img), self.txt_in(context)
        vec = self.time_in(timestep_embedding(timestep).to(img.dtype)) + self.vector_in(y)
        pe = positions(h // 2, w // 2, txt.shape[1], grid_step, self.config.axes, self.config.theta, x.device)
        for block in self.double_blocks:
            img, txt = block(img=img, txt=txt, vec=vec, pe=pe, transformer_options=transformer_options)
        n = txt.shape[1]
        x = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            x = block(x, vec=vec, pe=pe, transformer_options=transformer_options)
        out = self.final_layer(x[:, n:], vec)
        return out.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
