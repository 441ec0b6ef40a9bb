"""A classifier that names the emoji of a picture: how we know that the embedded picture model draws what it
is told.

Trained on composed pictures only, with noise and blur. It says which emoji stands first, which second (or
none), and which ground lies behind."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import nn

from .emoji import GROUNDS, EmojiSet, Pictures, draw_pictures, random_pictures
from .training import Plan, fit, generator

VIEW = 96
"""Edge in pixels at which the judge looks at a picture."""


class EmojiJudge(nn.Module):
    """Pictures [B,3,H,W] in 0..1 to logits: first emoji [B,N], second [B,N+1] (0: none), ground [B,8]."""

    def __init__(self, emoji: int):
        super().__init__()
        self.emoji, a, layers = emoji, 3, []
        for b, stride in ((32, 2), (64, 2), (96, 1), (128, 2), (128, 1), (160, 2)):
            layers += [
                nn.Conv2d(a, b, 3, padding=1, stride=stride, bias=False),
                nn.GroupNorm(8, b),
                nn.ReLU(),
            ]
            a = b
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.middle = nn.Sequential(nn.Linear(a * 16, 192), nn.ReLU())
        self.out = nn.Linear(192, 2 * emoji + 1 + len(GROUNDS))

    def forward(self, pictures):
        x = nnf.interpolate(pictures, (VIEW, VIEW), mode="area")
        return self.out(self.middle(self.trunk(x * 2 - 1))).split(
            [self.emoji, self.emoji + 1, len(GROUNDS)], 1
        )


def labels_of(pictures: Pictures):
    """First emoji, second emoji (0: none) and ground of pictures, each [B]."""
    second = torch.where(pictures.two, pictures.which[:, 1] + 1, 0)
    return pictures.which[:, 0], second, pictures.ground


def train_emoji_judge(
    emoji: EmojiSet, plan: Plan, folder: Path, seed: int, device: str, batch: int = 96
) -> EmojiJudge:
    """Trains the judge on composed pictures, half of them with two emoji."""
    net = EmojiJudge(len(emoji.names)).to(device)

    def loss_of(step: int):
        gen = generator(seed + 13, step, device)
        with torch.no_grad():
            pictures = random_pictures(batch, len(emoji.names), gen, 0.5)
            x = nnf.interpolate(draw_pictures(pictures, emoji), (VIEW, VIEW), mode="area")
            if step % 2:
                x = nnf.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            level = 0.1 * torch.rand(batch, 1, 1, 1, generator=gen, device=device)
            x = (x + torch.randn(x.shape, generator=gen, device=device) * level).clamp(0, 1)
        with torch.autocast(device, torch.bfloat16):
            out = net(x)
        return sum(nnf.cross_entropy(o.float(), t) for o, t in zip(out, labels_of(pictures)))

    opts = [torch.optim.AdamW(net.parameters(), plan.rate, weight_decay=1e-2)]
    return fit(net, loss_of, plan, folder, opts)


@torch.no_grad()
def read_pictures(net: EmojiJudge, drawn: torch.Tensor, pictures: Pictures, top: int = 1):
    """Whether every emoji told is among the `top` ones read, and whether the ground is right; booleans [B]
    each. drawn: pictures [B,3,H,W] in 0..1."""
    out, told = net(drawn), labels_of(pictures)
    among = [(o.topk(top, 1).indices == t[:, None]).any(1) for o, t in zip(out, told)]
    return among[0] & among[1], among[2]
