"""The classifier-free guidance that acts in a run, as far as it can be known before sampling."""

from __future__ import annotations

import comfy.samplers
from comfy.patcher_extension import WrappersMP

from .requests import KEY

UNKNOWN = (
    "the guidance that acts cannot be known, because {what}; a profile tells of one guidance only. Take that "
    "node out, or set the guidance on the sampler"
)
FUNCTIONS = {
    "sampler_cfg_function": "another node computes the guidance",
    "sampler_pre_cfg_function": "another node changes the predictions before guidance",
    "sampler_post_cfg_function": "another node changes what guidance gives",
    "sampler_calc_cond_batch_function": "another node evaluates the conditionings",
}
"""Functions in model_options by which other nodes change guidance."""


def acting_guidance(guider) -> tuple[float, str | None]:
    """The guidance of the guider, and why another one may act, or None.

    Nodes change it by functions in model_options and by wrappers of the evaluation (CFG Override sets it for
    a part of the steps); some guiders mix more than two predictions."""
    cfg, options = float(getattr(guider, "cfg", 1.0)), guider.model_options
    what = next((text for name, text in FUNCTIONS.items() if options.get(name)), None)
    wrappers = options.get("transformer_options", {}).get("wrappers", {}).get(WrappersMP.PREDICT_NOISE, {})
    if what is None and any(found for key, found in wrappers.items() if key != KEY):
        what = "another node wraps every evaluation and may change the guidance there"
    if what is None and not _plain(guider):
        what = f"{type(guider).__name__} guides in a way of its own"
    return cfg, what and UNKNOWN.format(what=what)


def _plain(guider) -> bool:
    """Whether a guider mixes two predictions by its cfg alone."""
    own = getattr(type(guider), "predict_noise", None)
    # The type checker takes nodes/comfy/samplers.py for ComfyUI's module.
    plain = comfy.samplers.CFGGuider  # pyright: ignore[reportAttributeAccessIssue]
    return own is plain.predict_noise or type(guider).__name__ in TWO_MODELS


TWO_MODELS = ("Guider_DualModel",)
"""Guiders of ComfyUI that mix the predictions of two models by their cfg."""
