"""Autoencoders of the further embedded models: a linear code of 8 x 8 pixel blocks and a trained decoder.

The code is a principal-component basis, as in `autoencoder`; encoding is one matrix product. The decoder has
TAESD's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import nn

from . import autoencoder as ae
from .training import Plan, fit, generator


class BlockAutoencoder(nn.Module):
    """`encode` takes pictures [B,3,8h,8w] in 0..1 to latents [B,16,h,w], `decode` takes them back."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(ae.CHANNELS, 3 * ae.BLOCK**2), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(ae.CHANNELS), requires_grad=False)
        self.decoder = ae.decoder()

    @torch.no_grad()
    def set_basis(self, pictures: torch.Tensor) -> None:
        """Fits the code to pictures [B,3,h,w]."""
        weight, bias = ae.block_basis(pictures.cpu())
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def encode(self, pictures):
        b, _, h, w = pictures.shape
        z = ae.blocks_of(pictures) @ self.weight.T + self.bias
        return z.reshape(b, h // ae.BLOCK, w // ae.BLOCK, ae.CHANNELS).permute(0, 3, 1, 2)

    def decode(self, latents):
        return self.decoder(latents).clamp(0, 1)


def basis_of_embedded(autoencoder: ae.Autoencoder) -> tuple[torch.Tensor, torch.Tensor]:
    """The embedded autoencoder's encoder as weight [16,192] and bias [16]; it is exactly linear."""
    unit = torch.eye(3 * ae.BLOCK**2).view(-1, 3, ae.BLOCK, ae.BLOCK)
    with torch.no_grad():
        base = autoencoder.encode(torch.zeros(1, 3, ae.BLOCK, ae.BLOCK)).flatten()
        rows = autoencoder.encode(unit).flatten(1) - base
    return rows.T.contiguous(), base


def train_decoder(
    vae: BlockAutoencoder,
    draw: Callable[[torch.Generator], torch.Tensor],
    plan: Plan,
    folder: Path,
    seed: int,
    device: str,
    crop: int = 64,
) -> BlockAutoencoder:
    """Trains the decoder on random crops of drawn pictures [B,3,h,w]: L1, MSE and L1 of gradients."""
    net = vae.decoder.to(device, memory_format=torch.channels_last).train()
    vae.to(device)

    def loss_of(step: int):
        gen = generator(seed + 77, step, device)
        with torch.no_grad():
            whole = draw(gen)
            y, x = (
                8 * int(torch.randint((n - crop) // 8 + 1, (), generator=gen, device=device))
                for n in whole.shape[-2:]
            )
            target = whole[:, :, y : y + crop, x : x + crop]
            code = vae.encode(target)
            level = 0.05 * torch.rand(len(code), 1, 1, 1, generator=gen, device=device)
            code = code + torch.randn(code.shape, generator=gen, device=device) * level
        with torch.autocast(device, torch.bfloat16):
            out = net(code.contiguous(memory_format=torch.channels_last))
        out = out.float()
        loss = nnf.l1_loss(out, target) + nnf.mse_loss(out, target)
        for axis in (2, 3):
            loss = loss + 0.5 * nnf.l1_loss(out.diff(dim=axis), target.diff(dim=axis))
        return loss

    opts = [torch.optim.AdamW(net.parameters(), plan.rate, weight_decay=0.0)]
    fit(net, loss_of, plan, folder, opts)
    return vae


@torch.no_grad()
def psnr_of(vae: BlockAutoencoder, pictures: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of encoding and decoding pictures [B,3,h,w]."""
    error = (vae.decode(vae.encode(pictures)) - pictures).square().mean((1, 2, 3))
    return float((-10 * error.clamp(min=1e-10).log10()).mean())
