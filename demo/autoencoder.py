"""The embedded model's autoencoder, in the TAESD layout that ComfyUI's VAELoader reads (16 latent channels,
8x smaller).

The encoder is exact and not trained: its latents are a principal-component basis of 8x8 pixel blocks, written
    into TAESD's convolutions (every residual block is the identity). The decoder is trained to undo it.
    Latents are in the model's space; a FLUX VAE's scale and shift stand in the file, so that ComfyUI converts
    as it does for FLUX."""

from __future__ import annotations

import torch
from torch import nn

CHANNELS = 16
BLOCK = 8
FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159


def _conv(n_in, n_out, **kw):
    return nn.Conv2d(n_in, n_out, 3, padding=1, **kw)


class Block(nn.Module):
    """Residual block of three convolutions; all-zero convolutions make it a ReLU."""

    def __init__(self, n: int = 64):
        super().__init__()
        self.conv = nn.Sequential(_conv(n, n), nn.ReLU(), _conv(n, n), nn.ReLU(), _conv(n, n))
        self.fuse = nn.ReLU()

    def forward(self, x):
        return self.fuse(self.conv(x) + x)


class Clamp(nn.Module):
    """Soft clamp to -3..3."""

    def forward(self, x):
        return torch.tanh(x / 3) * 3


def encoder() -> nn.Sequential:
    """Picture [B,3,8h,8w] in 0..1 to latent [B,16,h,w]."""
    layers = [_conv(3, 64), Block()]
    for _ in range(3):
        layers += [_conv(64, 64, stride=2, bias=False), Block(), Block(), Block()]
    return nn.Sequential(*layers, _conv(64, CHANNELS))


def decoder() -> nn.Sequential:
    """Latent [B,16,h,w] to picture [B,3,8h,8w] in 0..1."""
    layers = [Clamp(), _conv(CHANNELS, 64), nn.ReLU()]
    for _ in range(3):
        layers += [Block(), Block(), Block(), nn.Upsample(scale_factor=2), _conv(64, 64, bias=False)]
    return nn.Sequential(*layers, Block(), _conv(64, 3))


class Autoencoder(nn.Module):
    """Encoder and decoder; `encode` and `decode` speak pictures in 0..1 and latents in the model's space."""

    def __init__(self):
        super().__init__()
        self.taesd_encoder, self.taesd_decoder = encoder(), decoder()

    def encode(self, picture):
        return self.taesd_encoder(picture)

    def decode(self, latent):
        return self.taesd_decoder(latent).clamp(0, 1)


def blocks_of(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B,3,8h,8w] as rows of pixel blocks [B*h*w, 192]."""
    b, c, h, w = pictures.shape
    x = pictures.reshape(b, c, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c * BLOCK * BLOCK)


def block_basis(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Principal components of pixel blocks: weight [16,192] and bias [16].

    Colour components get unit deviation; the sparse detail components are scaled by their tail, so that the
    decoder's soft clamp at 3 loses little."""
    rows = blocks_of(pictures).double()
    mean = rows.mean(0)
    _, _, v = torch.linalg.svd(rows - mean, full_matrices=False)
    v = v[:CHANNELS]
    z = (rows - mean) @ v.T
    scale = torch.minimum(1 / z.std(0), 2.2 / z.abs().quantile(0.995, dim=0))
    weight = v * scale[:, None]
    return weight.float(), -(weight @ mean).float()


def write_encoder(net: nn.Sequential, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Writes `latent = weight @ block + bias` into TAESD's encoder layers, exactly.

    Pixels are not negative, so ReLUs pass them: three stride-2 convolutions gather a block's pixels as
        channels. The last one would need 192 channels; it forms the 16 components instead, as pairs +c and -c
        that survive a ReLU."""
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        convs = [m for m in net if isinstance(m, nn.Conv2d)]
        for c in range(3):
            convs[0].weight[c, c, 1, 1] = 1
        channels = 3
        for conv in convs[1:3]:
            for c in range(channels):
                for dy in range(2):
                    for dx in range(2):
                        conv.weight[(c * 2 + dy) * 2 + dx, c, 1 + dy, 1 + dx] = 1
            channels *= 4
        # After two gatherings channel ((c*2+y1)*2+x1)*4 + y2*2+x2 holds pixel (2*y2+y1, 2*x2+x1) of its 4x4
        # block: the first gathering holds the lowest bit of a coordinate.
        w = weight.reshape(CHANNELS, 3, 2, 2, 2, 2, 2, 2)  # k, c, y3, y2, y1, x3, x2, x1
        for y3 in range(2):
            for x3 in range(2):
                part = w[:, :, y3, :, :, x3, :, :].permute(0, 1, 3, 5, 2, 4).reshape(CHANNELS, 48)
                convs[3].weight[:CHANNELS, :48, 1 + y3, 1 + x3] = part
                convs[3].weight[CHANNELS : 2 * CHANNELS, :48, 1 + y3, 1 + x3] = -part
        for k in range(CHANNELS):
            convs[4].weight[k, k, 1, 1] = 1
            convs[4].weight[k, CHANNELS + k, 1, 1] = -1
            convs[4].bias[k] = bias[k]
