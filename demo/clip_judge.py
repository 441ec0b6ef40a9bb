"""A small classifier that reads objects, colours and motion off a clip: how we know that the embedded video
model shows what it is told.

Trained on generator clips only, with noise and blur. For the first and the second object it says shape,
colour and motion (or that there is none), and for the camera the pan."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import nn

from .clips import EDGE, FRAMES, STILL, Clips, draw_clips, random_clips
from .scenes import COLOURS, SHAPES
from .training import Plan, fit, generator

VIEW = 64
"""Edge in pixels at which the judge looks at a frame."""
HEADS = {"shape": len(SHAPES) + 1, "colour": len(COLOURS) + 1, "motion": STILL + 2}
"""Classes of each head, one of them "no object"."""


class ClipJudge(nn.Module):
    """Clips [B,FRAMES,3,H,W] in 0..1 to logits by name: shape, colour and motion [B,2,classes], pan [B,3]."""

    def __init__(self):
        super().__init__()
        layers, a = [], 3 * FRAMES
        for b, stride in ((48, 2), (64, 1), (96, 2), (96, 1), (128, 2), (128, 1)):
            layers += [
                nn.Conv2d(a, b, 3, padding=1, stride=stride, bias=False),
                nn.GroupNorm(8, b),
                nn.ReLU(),
            ]
            a = b
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.middle = nn.Sequential(nn.Linear(128 * 16, 192), nn.ReLU())
        self.out = nn.Linear(192, 2 * sum(HEADS.values()) + 3)

    def forward(self, clips):
        x = clips.flatten(1, 2)
        x = nnf.interpolate(x, (VIEW, VIEW), mode="area") if x.shape[-1] != VIEW else x
        out = self.out(self.middle(self.trunk(x * 2 - 1)))
        slots = out[:, :-3].view(len(out), 2, -1).split(list(HEADS.values()), 2)
        return {**dict(zip(HEADS, slots)), "pan": out[:, -3:]}


def labels_of(clips: Clips) -> dict[str, torch.Tensor]:
    """Classes of clips by head; 0 where there is no second object."""
    there = torch.stack([torch.ones_like(clips.two), clips.two], 1)
    found = {n: torch.where(there, getattr(clips, n) + 1, 0) for n in HEADS}
    return {**found, "pan": clips.pan}


def train_clip_judge(plan: Plan, folder: Path, seed: int, device: str, batch: int = 128) -> ClipJudge:
    """Trains the judge on generator clips."""
    net = ClipJudge().to(device)

    def loss_of(step: int):
        gen = generator(seed + 13, step, device)
        with torch.no_grad():
            clips = random_clips(batch, gen)
            x = draw_clips(clips).flatten(1, 2)
            x = nnf.interpolate(x, (VIEW, VIEW), mode="area")
            if step % 2:
                x = nnf.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            level = 0.08 * torch.rand(batch, 1, 1, 1, generator=gen, device=device)
            x = (x + torch.randn(x.shape, generator=gen, device=device) * level).clamp(0, 1)
        out, told = net(x.unflatten(1, (FRAMES, 3))), labels_of(clips)
        return sum(nnf.cross_entropy(out[n].flatten(0, -2), told[n].flatten()) for n in told)

    opts = [torch.optim.AdamW(net.parameters(), plan.rate, weight_decay=1e-3)]
    return fit(net, loss_of, plan, folder, opts)


@torch.no_grad()
def read_clips(net: ClipJudge, frames: torch.Tensor, clips: Clips) -> dict[str, torch.Tensor]:
    """What was read right, as booleans [B]: each of shape, colour, motion, direction, pan, and `told` where
    shape, colour and direction of every object are.

    frames [B,FRAMES,3,H,W] in 0..1. A direction is right also at another speed."""
    if frames.shape[1] != FRAMES:
        raise ValueError(f"The judge reads clips of {FRAMES} frames, not of {frames.shape[1]}.")
    out = {n: v.argmax(-1) for n, v in net(frames).items()}
    told = labels_of(clips)
    right = {n: (out[n] == told[n]).flatten(1).all(1) if n != "pan" else out[n] == told[n] for n in told}

    def direction(v):
        return torch.where((v == 0) | (v > STILL), v, (v - 1) // 2 + 100)

    right["direction"] = (direction(out["motion"]) == direction(told["motion"])).all(1)
    right["told"] = right["shape"] & right["colour"] & right["direction"]
    return right


assert EDGE % VIEW == 0
