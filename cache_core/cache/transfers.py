"""Small tensors on their way to a device, without a wait of the host."""

from __future__ import annotations

import torch


def upload(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers from main memory on a device; on CUDA through pinned memory, so that the host does not wait."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


def downloaded(values: list[torch.Tensor]) -> list[float]:
    """Numbers of tensors of one value each, by one copy per device."""
    by_device: dict[torch.device, list[int]] = {}
    for i, value in enumerate(values):
        by_device.setdefault(value.device, []).append(i)
    found = [0.0] * len(values)
    for places in by_device.values():
        together = torch.stack([values[i].detach().reshape(()).float() for i in places]).tolist()
        for i, number in zip(places, together):
            found[i] = number
    return found
