"""What keeps a run, or a single model call, from being cached."""

from __future__ import annotations

OTHER_CACHES = {
    "easycache": "EasyCache or LazyCache",
    "rel_l1_thresh": "TeaCache",
    "magcache_thresh": "MagCache",
}
"""Other caches by a key that they leave in transformer_options or register a wrapper under."""
CACHE_WRAPPERS = {
    "ApplyFBCacheOnModel": "WaveSpeed's First Block Cache",
    **{name: name for name in ("TaylorSeer", "TeaCache", "MagCache")},
}
"""Other caches by how the class begins whose method made the model's function wrapper; only one such wrapper
can be on a model."""
FORWARDS = ("forward", "_forward", "forward_orig")


def why_run_not_cached(model_options: dict) -> str | None:
    """Why this run is not cached, or None."""
    options = model_options.get("transformer_options", {})
    wrappers = {key for by_key in options.get("wrappers", {}).values() for key in by_key}
    for key, name in OTHER_CACHES.items():
        if key in options or key in wrappers:
            return f"{name} is on this model too; two caches would count each other's skips"
    wrapper = getattr(model_options.get("model_function_wrapper"), "__qualname__", "")
    for start, name in CACHE_WRAPPERS.items():
        if wrapper.startswith(start):
            return f"{name} is on this model too; two caches would count each other's skips"
    if "multigpu_clones" in model_options:
        return "the model is split over several GPUs, which Dual Cache does not support yet"
    return None


def why_call_not_cached(options: dict) -> str | None:
    """Why this model call is not cached, or None. options: transformer_options."""
    if options.get("ar_state") is not None:
        return "its sampler makes the video part by part and keeps keys and values of its own"
    return None


def replaced_forward(model) -> str | None:
    """A sentence where another node has given a diffusion model a forward of its own, or None."""
    name = next((name for name in FORWARDS if name in vars(model)), None)
    return name and (
        f"Another node runs {type(model).__name__} by a {name} of its own; what that skips or "
        "adds is not counted."
    )
