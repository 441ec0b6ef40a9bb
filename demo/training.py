"""What every training of this folder shares: a loop with a limit in seconds, optimisers, the moving average,
checkpoints, float8 weights.

`fit` trains for a number of seconds rather than of steps, so that one command serves a CPU for an hour and a
GPU for minutes; the learning rate follows the share of the time that has passed."""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .weights import WEIGHTS

log = logging.getLogger("demo.training")
FLOAT8 = torch.float8_e4m3fn
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's quintic iteration (Jordan 2024)."""


class Checkpoint:
    """A training state on disk, written atomically so that a stop at any time can be resumed."""

    def __init__(self, path: Path):
        self.path = path

    def load(self):
        if not self.path.exists():
            return None
        return torch.load(self.path, weights_only=True, map_location="cpu")

    def save(self, state):
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)


def orthogonalised(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Matrices [n,a,b] moved towards the nearest half-orthogonal ones, in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024; step size of Liu et al. 2025) with one batched iteration per shape of matrix."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum=0.95, weight_decay=0.01):
        shapes: dict[tuple, list] = {}
        for p in matrices:
            shapes.setdefault(tuple(p.shape), []).append(p)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": some} for some in shapes.values()], defaults)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            some, rate = group["params"], group["lr"]
            grads = torch.stack([p.grad for p in some])
            state = self.state[some[0]]
            mean = state["mean"] if "mean" in state else state.setdefault("mean", torch.zeros_like(grads))
            mean.lerp_(grads, 1 - group["momentum"])
            update = orthogonalised(grads.lerp(mean, group["momentum"])).to(grads.dtype)
            scale = 0.2 * math.sqrt(max(grads.shape[1:]))
            torch._foreach_mul_(some, 1 - rate * group["weight_decay"])
            torch._foreach_add_(some, list(update.unbind()), alpha=-rate * scale)


def optimisers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, modulation, norms and biases."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        inner = p.ndim == 2 and "blocks." in name and "mod" not in name
        (matrices if inner else rest).append(p)
    found = [torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)]
    return found + ([Muon(matrices, rate)] if matrices else [])


def rounded_(tensors: list[torch.Tensor]) -> None:
    """Rounds tensors to float8 in place."""
    torch._foreach_copy_(tensors, [t.to(FLOAT8).to(t.dtype) for t in tensors])


@dataclass
class Plan:
    """How to train.

    seconds: the whole training may take, all resumed parts together.
    steps: at most so many.
    rate: peak learning rate.
    float8: names of parameters that are stored in float8; the last part of the training runs with them
        rounded (straight-through, Bengio et al. 2013).
    float8_from: share of the training from which on they are rounded.
    decay: of the moving average.
    every: seconds between checkpoints.
    warm: steps of the learning rate's rise.
    deadline: in seconds since 1970, at which the training ends although time is left; infinite for none.
    """

    seconds: float
    steps: int = 1_000_000
    rate: float = 2e-3
    float8: Callable[[str], bool] = lambda name: False
    float8_from: float = 0.75
    decay: float = 0.998
    every: float = 60.0
    warm: int = 100
    deadline: float = math.inf

    def factor(self, step: int, share: float) -> float:
        """The learning rate's factor: a linear warm-up, and a half cosine to zero over the second half."""
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, 2 * share - 1))))
        return min(1.0, (step + 1) / self.warm) * fall


class Average:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module, decay: float):
        self.now, self.decay = list(model.parameters()), decay
        self.mean = [p.detach().clone() for p in self.now]

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (step + 1) / (step + 20))
        torch._foreach_lerp_(self.mean, self.now, weight)

    @torch.no_grad()
    def into(self, model: nn.Module) -> nn.Module:
        """Writes the average into a model."""
        torch._foreach_copy_(list(model.parameters()), self.mean)
        return model


def _restore(state, model, average, opts) -> tuple[int, float]:
    model.load_state_dict(state["model"])
    with torch.no_grad():
        torch._foreach_copy_(average.mean, [t.to(average.mean[0].device) for t in state["mean"]])
    for o, s in zip(opts, state["opts"]):
        o.load_state_dict(s)
    return state["step"], state["elapsed"]


def fit(
    model: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    plan: Plan,
    folder: Path,
    opts: list[torch.optim.Optimizer] | None = None,
) -> nn.Module:
    """Trains a model and gives it back with the averaged weights, in evaluation mode.

    loss_of: the loss of a step, from its number; all randomness of a step must come from that number, so that
        a resumed training goes on as if it had not been stopped. Checkpoints and losses go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    opts = opts or optimisers(model, plan.rate)
    average = Average(model, plan.decay)
    done = Checkpoint(folder / "training.pt")
    state = done.load()
    step, before = _restore(state, model, average, opts) if state else (0, 0.0)
    start = saved = time.monotonic()
    total = max(1e-3, min(plan.seconds, before + plan.deadline - time.time()))
    rounded = [p for n, p in model.named_parameters() if plan.float8(n)]
    rates = [[g["lr"] for g in o.param_groups] for o in opts] if not state else state["rates"]

    def save():
        done.save(
            {
                "model": model.state_dict(),
                "mean": average.mean,
                "opts": [o.state_dict() for o in opts],
                "rates": rates,
                "step": step,
                "elapsed": before + time.monotonic() - start,
            }
        )

    while True:
        elapsed = before + time.monotonic() - start
        share = max(elapsed / total, step / plan.steps)
        if share >= 1:
            break
        kept = None
        if rounded and share >= plan.float8_from:
            kept = [p.detach().clone() for p in rounded]
            with torch.no_grad():
                rounded_(rounded)
        loss = loss_of(step)
        loss.backward()
        if kept:
            with torch.no_grad():
                torch._foreach_copy_(rounded, kept)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = plan.factor(step, share)
        for o, some in zip(opts, rates):
            for g, rate in zip(o.param_groups, some):
                g["lr"] = rate * factor
            o.step()
            o.zero_grad()
        average.update(step)
        step += 1
        if step % 50 == 0 or step == 1:
            _note(folder, step, elapsed, loss)
        if time.monotonic() - saved > plan.every:
            save()
            saved = time.monotonic()
    save()
    log.info("%s: %d steps in %.0f s", folder.name, step, before + time.monotonic() - start)
    return average.into(model).eval().requires_grad_(False)


def _note(folder: Path, step: int, elapsed: float, loss: torch.Tensor) -> None:
    line = {"step": step, "seconds": round(elapsed, 1), "loss": round(loss.item(), 5)}
    with open(folder / "loss.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")
    log.info("%s %s", folder.name, line)


def flow_loss(velocity: torch.Tensor, noise: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """Rectified-flow loss (Liu et al. 2022): the velocity leads from the latent to the noise."""
    return nn.functional.mse_loss(velocity.float(), noise - x0)


def noised(x0: torch.Tensor, gen: torch.Generator, shift: float = 1.0):
    """Noise, times [B] and noised latents; times are logit-normal (Esser et al. 2024), shifted towards
    noise."""
    noise = torch.randn(x0.shape, generator=gen, device=x0.device)
    t = torch.sigmoid(torch.randn(len(x0), generator=gen, device=x0.device) * 1.1)
    t = shift * t / (1 + (shift - 1) * t)
    return noise, t, torch.lerp(x0, noise, t.view(-1, *[1] * (x0.ndim - 1)))


def generator(seed: int, step: int, device: str) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


def time_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    """The options that every training command has."""
    parser.add_argument("--seconds", type=float, default=seconds, help="for the transformer")
    parser.add_argument(
        "--deadline", type=float, default=math.inf, help="end at this Unix time at the latest"
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the safetensors files")
    parser.add_argument("--start-from", type=Path, help="folder with safetensors files to go on from")
    parser.add_argument("--rate", type=float, help="peak learning rate")


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def start(seed: int) -> str:
    """Seeds, sets up logging and gives the device."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return device_name()
