"""One model call: the shims that are on the model while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from ..hooks.call_context import Call
from ..hooks.compilation import Compilation
from ..hooks.model_binding import Model
from ..hooks.self_check import SelfCheck
from ..hooks.shims import shim


@contextmanager
def installed(
    known: Model, call: Call, compilation: Compilation | None, check: SelfCheck | None
) -> Iterator[None]:
    """Inside it the shims of a call are on its model.

    compilation: how the model is compiled, or None.
    check: the self-check that looks at this call, or None.
    """
    shims = known.wiring(call).shims(known.module)
    with ExitStack() as stack:
        if compilation is not None:
            stack.enter_context(compilation.around())
            if call.kind == "A":
                whole = call.settings.level != "module"
            else:
                whole = call.kind == "F" and not call.modules and check is None
            shims = compilation.shims(known.module, shims, known.blocks, whole)
        if check is not None:
            stack.enter_context(check.around(known.module, shims))
        else:
            for part, maker in shims:
                stack.enter_context(shim(part, maker))
        yield


def left_alone(known: Model, compilation: Compilation | None) -> AbstractContextManager:
    """Around a call that runs without shims."""
    return nullcontext() if compilation is None else compilation.left_alone(known.module, known.blocks)
