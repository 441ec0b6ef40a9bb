"""Keys of the branches in a model call: all that tells one conditioning's features from another's."""

from __future__ import annotations

from collections import Counter


class Windows:
    """Context windows of a run. The features of a window that was not in the evaluation before are as old as
    its last use, so it gets a key of its own and is computed in full.

    moved: whether there was such a window.
    """

    def __init__(self):
        self._before: set[tuple] | None = None
        self._now: set[tuple] = set()
        self._times: Counter[tuple] = Counter()
        self.moved = False

    def begin_evaluation(self) -> None:
        """The sampler evaluates the model next."""
        self._before, self._now = self._now or None, set()

    def key(self, window) -> tuple | None:
        """The key of a window that the model is called for, None without one."""
        if window is None:
            return None
        frames = tuple(window.index_list)
        if frames not in self._now and self._before is not None and frames not in self._before:
            self._times[frames] += 1
            self.moved = True
        self._now.add(frames)
        return frames, self._times[frames]


def keys(
    model, x, c_concat, c_crossattn, control, options: dict, conds: dict, windows: Windows
) -> list[tuple]:
    """One key per branch in the batch, in batch order.

    model: ComfyUI's BaseModel. windows: of the run. The others are the arguments of its apply_model; options
    is transformer_options, conds the remaining keyword arguments."""
    return [
        (*chunk, windows.key(options.get("context_window")), hook_strengths(model))
        for chunk in chunks(x, c_concat, c_crossattn, control, options, conds)
    ]


def chunks(x, c_concat, c_crossattn, control, options: dict, conds: dict) -> list[tuple]:
    """One key per branch, from the arguments of the call alone."""
    branches = list(zip(options.get("cond_or_uncond") or [0], options.get("uuids") or [None]))
    # Other nodes switch parts of a model on and off by such flags, those of LTX-2 for one.
    flags = tuple(sorted((k, v) for k, v in options.items() if isinstance(v, bool)))
    flags += tuple(options.get("stg_self_attn_blocks") or ())  # LTX 2.5 leaves their attention out
    shared = (
        flags,
        x.shape[0] // len(branches),
        tuple(x.shape[1:]),
        str(x.dtype),
        _shape(c_concat),
        _shape(c_crossattn),
        control is not None,
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
