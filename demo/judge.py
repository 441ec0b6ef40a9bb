"""A small classifier that reads shape and colour off a picture: how we know that the embedded model draws
what it is told.

Trained on generator pictures only. It looks at a 3 x 3 grid of places and says for each which shape and which
colour stands there, or none; a sampled picture counts as right when every object of its caption is read
correctly at its place."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import nn

from .scenes import COLOURS, PLACES, SHAPES, Scene, draw_scene, random_scene

EDGE = 96
"""Edge in pixels at which the judge looks at a picture."""
_COLOURS = tuple(COLOURS)


class Judge(nn.Module):
    """Pictures [B,3,H,W] in 0..1 to logits (shape [B,9,3,3], colour [B,9,3,3]); class 0 is none."""

    def __init__(self):
        super().__init__()
        layers, a = [], 3
        for b, stride in ((16, 2), (32, 2), (64, 2), (64, 2), (96, 1), (96, 1)):
            layers += [nn.Conv2d(a, b, 3, padding=1, stride=stride), nn.BatchNorm2d(b), nn.ReLU()]
            a = b
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Conv2d(96, 18, 3, padding=1))

    def forward(self, pictures):
        x = nnf.interpolate(pictures, (EDGE, EDGE), mode="area") if pictures.shape[-1] != EDGE else pictures
        out = self.head(self.trunk(x * 2 - 1))
        return out[:, :9], out[:, 9:]


def labels_of(scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    """Shape and colour classes [3,3] of a scene, 0 where nothing stands."""
    shape, colour = torch.zeros(3, 3, dtype=torch.long), torch.zeros(3, 3, dtype=torch.long)
    for t in scene.things:
        px, py = PLACES[t.place]
        shape[py + 1, px + 1] = SHAPES.index(t.shape) + 1
        colour[py + 1, px + 1] = _COLOURS.index(t.colour) + 1
    return shape, colour


def train_judge(steps: int = 900, batch: int = 48, seed: int = 11, progress=range) -> Judge:
    """Trains the judge on generator pictures, with noise and blur so that it does not depend on their exact
    pixels."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Judge().train()
    opt = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(opt, 3e-3, steps)
    for _ in progress(steps):
        scenes = [random_scene(rng) for _ in range(batch)]
        x = torch.from_numpy(np.stack([draw_scene(s, EDGE) for s in scenes])).permute(0, 3, 1, 2)
        if rng.random() < 0.5:
            x = nnf.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = (x + torch.randn_like(x) * 0.06 * rng.random()).clamp(0, 1)
        shape, colour = (torch.stack(v) for v in zip(*(labels_of(s) for s in scenes)))
        a, b = net(x)
        weight = torch.ones(9)
        weight[0] = 0.3
        loss = nnf.cross_entropy(a, shape, weight) + nnf.cross_entropy(b, colour, weight)
        opt.zero_grad()
        loss.backward()
        opt.step()
        rate.step()
    return net.eval()


@torch.no_grad()
def read_right(net: Judge, pictures: torch.Tensor, scenes: list[Scene]) -> list[bool]:
    """Whether each picture [B,3,H,W] shows every object of its scene, in shape and colour, at its place."""
    a, b = (v.argmax(1) for v in net(pictures))
    out = []
    for i, scene in enumerate(scenes):
        shape, colour = labels_of(scene)
        there = shape > 0
        out.append(bool((a[i][there] == shape[there]).all() and (b[i][there] == colour[there]).all()))
    return out
