"""`forward` shims on blocks and their sub-modules, for the length of one model call: where features are taken
and put back.

No module is replaced and no weight is touched. A shim is set as the instance's `forward` while one model
call runs and is removed in `finally`. A `forward` that another pack has set before is kept, called and
restored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..base.errors import CacheMismatch


@contextmanager
def shim(module: nn.Module, make: Callable):
    """Sets `module.forward = make(original forward)` inside the block."""
    before = module.__dict__.get("forward")
    module.forward = made = make(module.forward)
    made.shim = True
    try:
        yield
    finally:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = before


def shimmed(module: nn.Module) -> bool:
    """Whether a shim is on a module inside this one."""
    return any(getattr(m.__dict__.get("forward"), "shim", False) for m in module.modules() if m is not module)


@contextmanager
def capture(modules: dict[str, nn.Module], inputs: bool = False):
    """Yields a dict that fills with the outputs, or the first `inputs`, of the named modules as they run."""
    seen: dict = {}

    def recorder(name):
        def make(original):
            def forward(*args, **kwargs):
                out = original(*args, **kwargs)
                seen[name] = (*args, *kwargs.values())[0] if inputs else out
                return out

            return forward

        return make

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(shim(module, recorder(name)))
        yield seen


@contextmanager
def replayed(outputs: dict[nn.Module, torch.Tensor]):
    """Lets each module return its given tensor instead of running."""
    with ExitStack() as stack:
        for module, value in outputs.items():
            stack.enter_context(shim(module, lambda original, value=value: lambda *args, **kwargs: value))
        yield


def with_override(options: dict | None, override: Callable) -> dict:
    """A copy of transformer_options whose attention runs through `override(attend, q, k, v, heads, *args,
    **kwargs)`.

    `attend` has the signature of the attention function; an override set by another node stays in the chain
    inside ours."""
    options = dict(options or {})
    previous = options.get("optimized_attention_override")

    def chained(func, q, k, v, heads, *args, **kwargs):
        def attend(q, k, v):
            if previous is not None:
                return previous(func, q, k, v, heads, *args, **kwargs)
            return func(q, k, v, heads, *args, **kwargs)

        if not kwargs.get("skip_reshape"):
            raise CacheMismatch(
                "Attention tensors do not match the registered layout; this call runs in full."
            )
        return override(attend, q, k, v)

    options["optimized_attention_override"] = chained
    return options


PREFETCH = "prefetch_dynamic_vbars"
"""The entry of ComfyUI's transformer_options by which a model's loop fetches the weights of the next block
before it calls the block (DynamicVRAM)."""


def without_prefetch(original):
    """The forward of a model of whose blocks most are skipped: a block that runs fetches its own weights, and
    those of skipped blocks stay where they are."""

    def forward(*args, **kwargs):
        options = kwargs.get("transformer_options")
        if isinstance(options, dict) and options.get(PREFETCH):
            kwargs["transformer_options"] = {**options, PREFETCH: False}
        return original(*args, **kwargs)

    return forward


class WeightsUsed(TorchFunctionMode):
    """Inside it, `used` tells whether any computation read a weight of these modules, by whichever function
    of a module. Questions about a weight, such as its device, do not count."""

    def __init__(self, modules: Iterable[nn.Module]):
        super().__init__()
        self.used = False
        self._weights = {
            id(weight) for module in modules for weight in (*module.parameters(), *module.buffers())
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = (*args, *(kwargs or {}).values())
        if getattr(func, "__name__", "") != "__get__":
            self.used = self.used or any(id(value) in self._weights for value in given)
        return func(*args, **(kwargs or {}))
