"""A small classifier that reads objects, colours and motion off a clip: how we know that the embedded video
model shows what it is told.

Trained on generator clips only, with noise and blur. For each colour it says which shape has it and how that
moves, or that nothing has it; for the camera the pan. Its convolutions wrap around, as clips do."""

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
HEADS = {"shape": len(SHAPES) + 1, "motion": STILL + 2}
"""Classes of each head for every colour, the first one "nothing has this colour"."""


class ClipJudge(nn.Module):
    """Clips [B,FRAMES,3,H,W] in 0..1 to logits by name: shape and motion [B,8,classes] for every
    colour, pan [B,3]."""

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
        self.trunk = nn.Sequential(*layers)
        self.middle = nn.Sequential(nn.Linear(2 * a, 256), nn.ReLU())
        self.out = nn.Linear(256, len(COLOURS) * sum(HEADS.values()) + 3)

    def forward(self, clips):
        x = clips.flatten(1, 2)
        x = nnf.interpolate(x, (VIEW, VIEW), mode="area") if x.shape[-1] != VIEW else x
        x = self.trunk(x * 2 - 1).flatten(2)
        out = self.out(self.middle(torch.cat([x.mean(2), x.amax(2)], 1)))
        slots = out[:, :-3].view(len(out), len(COLOURS), -1).split(list(HEADS.values()), 2)
        return {**dict(zip(HEADS, slots)), "pan": out[:, -3:]}


def labels_of(clips: Clips) -> dict[str, torch.Tensor]:
    """Classes of clips by head: shape and motion [B,8], 0 for colours that no object has, and pan [B]."""
    none = torch.zeros(len(clips.two), len(COLOURS), dtype=torch.long, device=clips.two.device)
    found = {n: none.clone() for n in HEADS}
    for k in (1, 0):
        there = torch.ones_like(clips.two) if k == 0 else clips.two
        for name, table in found.items():
            at = clips.colour[:, k : k + 1]
            value = torch.where(there[:, None], getattr(clips, name)[:, k : k + 1] + 1, table.gather(1, at))
            table.scatter_(1, at, value)
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
        loss = nnf.cross_entropy(out["pan"], told["pan"])
        for name in HEADS:
            weight = torch.ones(HEADS[name], device=device)
            weight[0] = 0.3
            loss = loss + nnf.cross_entropy(out[name].flatten(0, 1), told[name].flatten(), weight)
        return loss

    opts = [torch.optim.AdamW(net.parameters(), plan.rate, weight_decay=1e-3)]
    return fit(net, loss_of, plan, folder, opts)


@torch.no_grad()
def read_clips(net: ClipJudge, frames: torch.Tensor, clips: Clips) -> dict[str, torch.Tensor]:
    """What was read right, as booleans [B].

    `colour`: exactly the told colours are there. `shape`, `motion`: of every object. `direction`: at any
    speed. `pan`. `told`: colour, shape and direction.
    frames [B,FRAMES,3,H,W] in 0..1."""
    if frames.shape[1] != FRAMES:
        raise ValueError(f"The judge reads clips of {FRAMES} frames, not of {frames.shape[1]}.")
    out = {n: v.argmax(-1) for n, v in net(frames).items()}
    told = labels_of(clips)
    there = told["shape"] > 0

    def direction(v):
        return torch.where((v == 0) | (v > STILL), v, (v - 1) // 2 + 100)

    def right(a, b):
        return ((a == b) | ~there).all(1)

    found = {n: right(out[n], told[n]) for n in HEADS}
    found["colour"] = ((out["shape"] > 0) == there).all(1)
    found["direction"] = right(direction(out["motion"]), direction(told["motion"]))
    found["pan"] = out["pan"] == told["pan"]
    found["told"] = found["shape"] & found["colour"] & found["direction"]
    return found


assert EDGE % VIEW == 0
