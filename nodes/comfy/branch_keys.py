"""Keys of the branches in a model call: all that tells one conditioning's features from another's."""

from __future__ import annotations


def keys(model, x, c_concat, c_crossattn, control, options: dict, conds: dict) -> list[tuple]:
    """One key per branch in the batch, in batch order.

    model: ComfyUI's BaseModel. The others are the arguments of its apply_model; options is
    transformer_options, conds the remaining keyword arguments."""
    return [
        (*chunk, hook_strengths(model)) for chunk in chunks(x, c_concat, c_crossattn, control, options, conds)
    ]


def chunks(x, c_concat, c_crossattn, control, options: dict, conds: dict) -> list[tuple]:
    """One key per branch, from the arguments of the call alone."""
    branches = list(zip(options.get("cond_or_uncond") or [0], options.get("uuids") or [None]))
    window = options.get("context_window")
    # Other nodes switch parts of a model on and off by such flags, those of LTX-2 for one.
    flags = tuple(sorted((k, v) for k, v in options.items() if isinstance(v, bool)))
    shared = (
        flags,
        x.shape[0] // len(branches),
        tuple(x.shape[1:]),
        str(x.dtype),
        _shape(c_concat),
        _shape(c_crossattn),
        control is not None,
        tuple(window.index_list) if window is not None else None,
        _patch_names(options),
        tuple((k, _shape(v)) for k, v in sorted(conds.items())),
    )
    return [(*branch, *shared) for branch in branches]


def hook_strengths(model) -> tuple:
    """Strengths of the hooks (LoRAs on a part of the conditioning) that are on the model now; keyframes
    change them during a run."""
    hooks = getattr(getattr(model, "current_patcher", None), "current_hooks", None)
    return tuple(float(hook.strength) for hook in hooks.hooks) if hooks else ()


def _patch_names(options: dict) -> tuple:
    """Names of the functions that patch the model's blocks."""
    patches = {**options.get("patches", {}), **options.get("patches_replace", {}).get("dit", {})}

    def names(value) -> tuple:
        functions = value if isinstance(value, list) else [value]
        return tuple(getattr(f, "__qualname__", type(f).__name__) for f in functions)

    return tuple(sorted((str(k), names(v)) for k, v in patches.items()))


def _shape(value):
    if hasattr(value, "shape"):
        return tuple(value.shape[1:])
    return tuple(_shape(v) for v in value) if isinstance(value, (list, tuple)) else None
