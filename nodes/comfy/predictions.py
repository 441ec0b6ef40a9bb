"""What a ComfyUI model predicts, as `cache_core.base.coordinates.PREDICTIONS` names it."""

from __future__ import annotations

import comfy.model_sampling as sampling

_KINDS = (
    ("IMG_TO_IMG_FLOW", "data"),
    ("EDM", "edm"),
    ("V_PREDICTION", "velocity"),
    ("X0", "data"),
    ("CONST", "flow"),
    ("EPS", "noise"),
)
"""ComfyUI's classes, the more special before those that they inherit from."""


def prediction_of(model_sampling) -> str:
    """The kind of prediction of a model's `model_sampling`; "unknown" for others and for scaled data."""
    if getattr(model_sampling, "sigma_data", 1.0) not in (1.0, 1):
        return "unknown"
    for name, kind in _KINDS:
        known = getattr(sampling, name, None)
        if known is not None and isinstance(model_sampling, known):
            return kind
    return "unknown"
