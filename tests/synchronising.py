"""Counts what would make the host wait for a device, by logging operations on the CPU."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "lift_fresh")
"""Operations that read from the device, or whose size it decides; `lift_fresh` is a tensor made of numbers,
which a device would have to be sent."""


class Log(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.count: Counter = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.name().removeprefix("aten::").split(".")[0].lstrip("_")] += 1
        if "index" in function.name() and len(args) > 1 and isinstance(args[1], (list, tuple)):
            masks = [i for i in args[1] if isinstance(i, torch.Tensor) and i.dtype == torch.bool]
            self.count["nonzero"] += len(masks)
        return function(*args, **(kwargs or {}))

    def waits(self) -> dict[str, int]:
        found = {name: self.count[name.lstrip("_")] for name in WAITS}
        return {name: n for name, n in found.items() if n}
