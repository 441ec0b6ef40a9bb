"""Replaying the sub-modules of a block.

A sub-module's output is kept before its gate and put back by a shim on it; the unmodified block gates it with
the current step's modulation. Rows of an MLP are computed afresh by the MLP itself, on gathered rows of its
input. Blocks with an adapter are recorded and replayed by that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from ..base.errors import CacheMismatch
from ..cache.rows import take_rows
from ..models.block_spec import BlockSpec
from ..models.families import Block
from .call_context import Call
from .flux_adapter import adapter_of, bind
from .shims import capture, shim


def present(block: Block, paths) -> dict[str, nn.Module]:
    """The sub-modules at these paths; a block need not have all of them."""
    found = {}
    for path in paths:
        module = block.module
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.Module):
            found[path] = module
    return found


def record(original, block: Block, call: Call, args, kwargs):
    """Runs the block and keeps the outputs of its sub-modules."""
    if (adapter := adapter_of(block.spec)) is not None:
        return adapter.record(original, block, call, bind(adapter, args, kwargs))
    spec, seen, again = block.spec, {}, []

    def recorder(path):
        def make(inner):
            def forward(*a, **k):
                if path in seen:
                    again.append(path)
                seen[path] = out = inner(*a, **k)
                return out

            return forward

        return make

    with ExitStack() as stack:
        for path, module in present(block, spec.modules).items():
            stack.enter_context(shim(module, recorder(path)))
        out = original(*args, **kwargs)
    if again:
        call.batch.refuse(f"{again[0]} runs several times in a block")
        return out
    for path, value in seen.items():
        bare = isinstance(value, torch.Tensor)
        parts = (value,) if bare else value
        for i, part in enumerate(parts):
            if isinstance(part, torch.Tensor):
                kept = spec.batched(part.clone() if spec.writes else part)
                call.record((*block.name, path, i, 0 if bare else len(parts)), kept)
    return out


def replay(original, block: Block, call: Call, args, kwargs):
    """Runs the block on the kept outputs of its sub-modules, with the chosen rows of its MLPs computed afresh
    on a conservative step."""
    if (adapter := adapter_of(block.spec)) is not None:
        return adapter.conserve(original, block, call, bind(adapter, args, kwargs))
    spec = block.spec
    computed = call.parts(block.name, spec.parts)
    kept: dict[str, list[tuple]] = {}
    for name in call.batch.branches[0].sites:
        if name[:2] == block.name and len(name) == 5:
            kept.setdefault(name[2], []).append(name)

    def player(path):
        def make(inner):
            def forward(*a, **k):
                if path not in kept:
                    raise CacheMismatch(
                        "A module that runs now did not run on the last full step; this call runs in full."
                    )
                sites = {site[3]: site for site in kept[path]}
                if computed & {"", spec.part(path)}:
                    return _computed(inner, sites, call, spec, *a, **k)
                if path in spec.rows and call.kind == "C":
                    return _refresh(inner, sites[0], call, block, spec.rows[path], *a, **k)
                count = sites[min(sites)][4]
                values = {
                    i: spec.unbatched(call.module_value(site, owned=spec.writes)) for i, site in sites.items()
                }
                return tuple(values.get(i) for i in range(count)) if count else values[0]

            return forward

        return make

    with ExitStack() as stack:
        for path, module in present(block, spec.modules).items():
            stack.enter_context(shim(module, player(path)))
        return original(*args, **kwargs)


def _computed(inner, sites, call: Call, spec: BlockSpec, *args, **kwargs):
    """A sub-module's output on all tokens, which becomes the correction of its sites."""
    out = inner(*args, **kwargs)
    for i, part in enumerate((out,) if isinstance(out, torch.Tensor) else out):
        if i in sites:
            call.batch.correct(sites[i], spec.batched(part), call.settings.modules)
    return out


def _refresh(
    inner, site, call: Call, block: Block, stream: str, x: torch.Tensor, *args, **kwargs
) -> torch.Tensor:
    """An MLP's output with the chosen rows computed from x [B,...,d] or [n,d]; they become the
    site's correction."""
    spec = block.spec
    flat = spec.batched(x).flatten(1, -2)
    rows = call.choose(block.name, stream, flat.shape[1], x.device)
    if rows is None:
        return spec.unbatched(call.module_value(site, owned=True))
    fresh = spec.batched(inner(spec.unbatched(take_rows(flat, rows)), *args, **kwargs))
    if call.batch.dimensions(site) > 3:
        raise CacheMismatch("A module's output does not have the registered shape; this call runs in full.")
    return spec.unbatched(call.batch.refresh(site, fresh, call.settings.modules, rows))


def opened(value):
    """A dict of its own, with lists of its own, from which a model may take things; anything else as it
    is."""
    return {k: list(v) if type(v) is list else v for k, v in value.items()} if type(value) is dict else value


def copied(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments that may be written into: tensors are copies, also in tuples and lists; dicts and the lists
    in them are new."""

    def one(value):
        if type(value) in (tuple, list):
            return type(value)(map(one, value))
        return value.clone() if isinstance(value, torch.Tensor) else opened(value)

    return tuple(map(one, args)), {k: one(v) for k, v in kwargs.items()}


class _Seen(Exception):
    """Ends a block at its attention, once its input is known."""


def modulated_input(original, block: Block, args, kwargs) -> torch.Tensor | None:
    """What the block's attention reads, [B,n,d] in the order of `BlockSpec.joined` of the last blocks; None
    where the registry does not say which module that is.

    The unmodified block runs up to there: its norm and its modulation."""
    spec = block.spec
    if (adapter := adapter_of(spec)) is not None:
        return adapter.modulated_input(block, bind(adapter, args, kwargs))
    path, places = spec.probe or ((spec.modules[0], (0,)) if spec.modules else ("", ()))
    module = present(block, [path] if path else []).get(path)
    if module is None:
        return None
    found: list[torch.Tensor] = []

    def make(inner):
        def forward(*a, **k):
            found.extend(v for v in (*a, *k.values()) if isinstance(v, torch.Tensor))
            raise _Seen

        return forward

    if spec.writes:  # a block that leaves its attention out runs to its end
        args, kwargs = copied(args, kwargs)
    with shim(module, make):
        try:
            original(*args, **kwargs)
        except _Seen:
            return torch.cat([spec.flat(found[i]) for i in places], 1) if len(found) > max(places) else None
    return None


@contextmanager
def modulated_inputs_read(block: Block) -> Iterator[list[torch.Tensor]]:
    """Around a block that runs: a list that then holds what its attention has read, as `modulated_input`
    gives it. It stays empty for blocks without an adapter, and where another node has replaced the inside."""
    found: list[torch.Tensor] = []
    adapter = adapter_of(block.spec)
    if adapter is None:
        yield found
        return
    paths = adapter.inputs
    with capture({path: block.module.get_submodule(path) for path in paths}, inputs=True) as seen:
        yield found
    if len(seen) == len(paths):
        found.append(torch.cat([seen[path] for path in paths], 1))
