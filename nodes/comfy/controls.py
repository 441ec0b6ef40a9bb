"""How much control networks add to a model call."""

from __future__ import annotations

import torch

PROBED = 4096
"""Values of a residual that are looked at."""


def size_of_control(control: dict | None) -> float | None:
    """Mean magnitude of what control networks add, of the first residual of every kind; None without them.

    control: ComfyUI's dict of lists of residuals [B,...] or None."""
    if not control:
        return None
    sizes = []
    for residuals in control.values():
        found = residuals if isinstance(residuals, (list, tuple)) else [residuals]
        first = next((r for r in found if isinstance(r, torch.Tensor) and r.is_floating_point()), None)
        if first is not None and first.numel():
            flat = first.detach().flatten()
            sizes.append(flat[:: max(1, flat.numel() // PROBED)].float().abs().mean())
    return float(torch.stack(sizes).sum()) if sizes else None
