"""Masks from what papers publish: router tables of Learning-to-Cache and HarmoniCa, block lists of
ProfilingDiT."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..base.limits import MAX_STEPS
from .masks import ALL, MAX_CELLS, PARTS, Mask

THRESHOLD = 0.1
"""A module whose score lies above it is computed, in both papers."""
LARGEST_FILE = 1 << 26
_STEP = re.compile(r"(?:.*\.)?(\d{1,5})\.prob")


def columns(**blocks: int) -> tuple[str, ...]:
    """Names of a router table's columns for a model with so many blocks of each kind, in running order:
    columns(double=19, single=38).

    Attention and MLP of each block take a column each, a block of the kind "single" one, as it is fused.
    """
    return tuple(
        f"{kind}.{i}" if kind == "single" else f"{kind}.{i}.{part}"
        for kind, count in blocks.items()
        for i in range(count)
        for part in (PARTS if kind != "single" else ("",))
    )


def router_mask(
    scores: torch.Tensor | Sequence,
    names: Sequence[str],
    threshold: float = THRESHOLD,
    paired: bool = False,
    reverse: bool = False,
) -> Mask:
    """The mask of a router table [T, len(names)] of scores from 0 to 1, or of truths: what lies above
    `threshold` is computed.

    names: of `columns`. paired: for Learning-to-Cache, whose tables are read at every second step only, those
        between being full (counted as its sampler does, from the last step, so that the last is a cached
        one). reverse: rows run from the last step to the first, as in its files, which go by the model's
        timestep. Both papers reuse outputs before their gates: level "module", predictor reuse. ValueError
        naming what does not fit."""
    try:
        table = torch.as_tensor(scores)
    except (TypeError, ValueError, RuntimeError, OverflowError, RecursionError):
        raise ValueError("scores must be a list of rows of equally many numbers or truths.") from None
    if (
        table.ndim != 2
        or table.shape[1] != len(names)
        or not 1 <= len(table) <= MAX_STEPS
        or table.numel() > MAX_CELLS
    ):
        raise ValueError(
            f"scores must be a table of steps and {len(names)} modules, not of {list(table.shape)}."
        )
    if table.is_complex() or not bool(((table >= 0) & (table <= 1)).all()):  # NaN fails the comparison
        raise ValueError("scores must lie between 0 and 1.")
    if reverse:
        table = table.flip(0)
    chosen = (table > threshold).tolist()
    rows = [[n for n, on in zip(names, row, strict=True) if on] for row in chosen]
    if paired:
        rows = [[ALL] if (len(rows) - 1 - s) % 2 else row for s, row in enumerate(rows)]
    return Mask.from_rows(rows)


def read_scores(path: Path) -> torch.Tensor:
    """A router table [T, modules] from a file: JSON, a list of rows, or safetensors with one table, or with a
    vector of logits per step, "<step>.prob", as Learning-to-Cache's checkpoints have them once converted.
    ValueError in one sentence where it is neither."""
    path = Path(path)
    if path.suffix not in (".json", ".safetensors"):
        raise ValueError(
            f"{path.name} must be a .json or .safetensors file; other checkpoints may run code when they "
            "are opened."
        )
    if not path.is_file():
        raise ValueError(f"{path.name} is not there.")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path.name} is too large for a router.")
    try:
        if path.suffix == ".json":
            return torch.as_tensor(json.loads(path.read_text(encoding="utf-8")))
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
    except (
        SafetensorError,
        ValueError,
        TypeError,
        RuntimeError,
        OSError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(f"{path.name} is not a router: {type(error).__name__}.") from None
    logits = {int(found[1]): t for name, t in tensors.items() if (found := _STEP.fullmatch(name))}
    if logits and sorted(logits) == list(range(len(logits))) and len({t.shape for t in logits.values()}) == 1:
        return torch.stack([logits[i] for i in range(len(logits))]).double().sigmoid()
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise ValueError(f"{path.name} must hold one table, or one vector per step named like 0.prob.")


def split_mask(
    steps: int,
    blocks: Iterable[str],
    background: Iterable[str],
    refresh: Iterable[int],
    start: int = 0,
    runs: bool = True,
) -> Mask:
    """ProfilingDiT's mask (ICCV 2025): foreground blocks run at every step, `background` ones at the steps
    `refresh` and before `start`.

    blocks: all of the model, such as "single.3". runs: one tensor is kept per run of neighbouring background
        blocks, what they add in sum, and added as it was, as in the paper; else each of their modules is
        replayed and gated with the current step's modulation."""
    blocks, background = tuple(blocks), set(background)
    unknown = sorted(background - set(blocks))
    if unknown:
        raise ValueError(f"background must be among the blocks, unlike {unknown[0]}.")
    foreground = [b for b in blocks if b not in background]
    return Mask.of(
        steps, {**{b: range(steps) for b in foreground}, ALL: {*range(min(start, steps)), *refresh}}, runs
    )
