"""The self-check: on a model's first full call, does what later steps will put back give the real result?

One block of every kind is run once more as conservative steps, or aggressive ones at the levels `block` and
`module`, would run it, on what was just kept of it, and compared with its real result. At `final` and `stack`
the model is run once more with all blocks skipped and the end of the last one put back, and compared with its
own output: this shows that the last block really is the last, and that nothing else reads the blocks. Of
blocks that are guessed, no weight may be used in that call, and a guess that could not be compared is wrong.
Where a mask skips spans of blocks, those are skipped and the end of each is put back. The check costs as much
as one skipped step; nothing of it is kept, and the call returns its own result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import nn

from ..base.errors import CacheMismatch, CacheTooLarge, is_out_of_memory
from ..base.names import NAMES
from ..cache.feature_cache import Batch, Branch
from ..config import CacheConfig
from ..models.capabilities import coarser, gave_way
from ..models.families import Block
from ..predictors.extrapolation import predictor
from .block_spans import SpanWiring
from .call_context import Call
from .module_replay import copied, replay
from .shims import WeightsUsed, shim
from .wiring import Wiring

COARSER = {"module": "block", "block": "final", "stack": "final", "final": "output"}
"""The level that replaces one that did not pass."""
_REUSE = predictor("reuse")
_BROKEN = (CacheMismatch, TypeError, AttributeError, LookupError, ValueError, RuntimeError)
"""Errors of code that was written for other blocks; running out of memory, also a RuntimeError, is not one of
them."""


class SelfCheck:
    """The check of one full call.

    call: the running one.
    blocks: of the model.
    wiring: makes the wiring of a call.
    planned: kinds of steps to come, of "A" and "C".
    ratio: share of tokens that conservative steps refresh, or None where a mask says what they compute.
    guess: whether the blocks are guessed (`models.detection`).
    passed: for each kind whether what was put back was right; a kind that could not be compared, since a
        block did not run or gave numbers that are not finite, is not in it."""

    def __init__(
        self,
        call: Call,
        blocks: list[Block],
        wiring: Callable[[Call], Wiring],
        planned: set[str],
        ratio: float | None,
        guess: bool = False,
    ):
        level = call.settings.level
        self.passed: dict[str, bool] = {}
        self._unseen: set[str] = set()
        self._call, self._wiring, self._planned, self._ratio, self._guess = (
            call,
            wiring,
            planned,
            ratio,
            guess,
        )
        runs = isinstance(wiring(call), SpanWiring)
        self._by_block = (
            [] if runs else sorted(k for k in planned if k == "C" or level in ("block", "module"))
        )
        self._tail = next(
            (k for k in planned if runs or (k == "A" and level in ("final", "stack"))), ""
        )  # the kind judged by the whole
        sorts = {
            (b.name[0], type(b.module), _code(b.module)): (i, b) for i, b in reversed(list(enumerate(blocks)))
        }
        self._blocks = [(i, b, b.module.forward) for i, b in sorts.values()] if self._by_block else []

    @contextmanager
    def around(self, model: nn.Module, shims: Iterator) -> Iterator[None]:
        """Installs the call's own shims, and the check on top of them."""
        with ExitStack() as outer, ExitStack() as recording:
            outer.enter_context(shim(model, lambda original: self._whole(original, model, recording)))
            for part, maker in shims:
                recording.enter_context(shim(part, maker))
            for i, block, original in self._blocks:
                recording.enter_context(
                    shim(block.module, lambda kept, i=i, b=block, real=original: self._one(kept, i, b, real))
                )
            yield
        if self._guess and self._tail and self._tail not in self._unseen:
            self.passed.setdefault(self._tail, False)  # as where the model is being compiled
        self.passed = {
            kind: right for kind, right in self.passed.items() if not (right and kind in self._unseen)
        }

    def _twin(self, level: str, modules: bool) -> Call:
        """A call like this one, with branches of its own."""
        settings = replace(self._call.settings, level=level, first=0, predictor=_REUSE, module_predictor=None)
        batch = Batch([Branch() for _ in self._call.batch.branches], self._call.batch.node)
        return replace(
            self._call, batch=batch, settings=settings, modules=modules, note=lambda name, truth: None
        )

    def _wired(self, call: Call) -> Wiring:
        wiring = self._wiring(call)
        wiring.first = wiring.probe_blocks = 0
        return wiring

    # --- the whole model ------------------------------------------------------------------------

    def _whole(self, original, model: nn.Module, recording: ExitStack):
        def forward(*args, **kwargs):
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            again, random = copied(args, kwargs), _Random(args, kwargs)
            twin = self._twin("final", False)
            try:
                for part, maker in self._wired(twin).shims(model) if self._tail else ():
                    recording.enter_context(shim(part, maker))
                out = original(*args, **kwargs)
            except _BROKEN as error:
                if isinstance(error, CacheTooLarge) or is_out_of_memory(error):
                    raise
                recording.close()
                with random:  # whether it was ours shows without our shims
                    out = original(*again[0], **again[1])
                self.passed = dict.fromkeys(self._planned, False)
                return out
            recording.close()
            ended = not any(b.signature is None for b in twin.batch.branches)
            if self._tail and ended and any(b.signature is None for b in self._call.batch.branches):
                self.passed[self._tail] = (
                    False  # the skipped run's first block did not run, so nothing was kept
                )
            elif self._tail and not ended and self._guess:
                # The last of its blocks did not run, or gave something else than a tensor.
                self.passed[self._tail] = False
            elif self._tail and ended:
                with random:
                    self._judge(
                        self._tail,
                        lambda: self._ended(original, model, replace(twin, kind=self._tail), again),
                        [out],
                    )
            return out

        return forward

    def _ended(self, original, model: nn.Module, twin: Call, again) -> list:
        """The model's output with all blocks skipped and their real end put back."""
        wiring, run = self._wired(twin), original
        if self._call.settings.level == "stack" or self._call.settings.predictor.probe:
            wiring.side_modules = ()  # they run on its aggressive steps
        with ExitStack() as stack:
            for part, maker in wiring.shims(model):
                if part is model:
                    run = maker(run)
                else:
                    stack.enter_context(shim(part, maker))
            if not self._guess:
                return [run(*again[0], **again[1])]
            with WeightsUsed(block.module for block in wiring.blocks) as weights:
                out = run(*again[0], **again[1])
            if weights.used:
                raise CacheMismatch("A guessed block ran where all were to be skipped.")
            return [out]

    # --- one block ------------------------------------------------------------------------------

    def _one(self, kept, i: int, block: Block, original):
        def forward(*args, **kwargs):
            if torch.compiler.is_compiling():
                return kept(*args, **kwargs)
            again = copied(args, kwargs)
            level = self._call.settings.level
            twin = self._twin(
                level if level in ("block", "module") else "final", "C" in self._planned or level == "module"
            )
            random = _Random(args, kwargs)
            maker = self._wired(twin)._block(i, block)
            assert maker is not None  # the twin keeps what this block gives
            out = maker(kept)(*args, **kwargs)
            if any(b.refusal is not None for b in twin.batch.branches):
                return out
            for kind in self._by_block:
                if self.passed.get(kind, True):
                    with random:
                        self._judge(
                            kind,
                            lambda kind=kind: self._replayed(kind, block, original, twin, copied(*again)),
                            out,
                            block,
                            again,
                        )
            return out

        return forward

    def _replayed(self, kind: str, block: Block, original, twin: Call, again):
        """What a step of the kind makes of the block from what the twin call kept of it."""
        args, kwargs = again
        twin = replace(
            twin, kind=kind, **({"computed": frozenset()} if self._ratio is None else {"ratio": self._ratio})
        )
        if kind == "A" and twin.settings.level == "block":
            return self._wired(twin)._add(block, block.spec.take(args, kwargs))
        return replay(original, block, twin, args, kwargs)

    # --- judging --------------------------------------------------------------------------------

    def _judge(
        self,
        kind: str,
        run: Callable,
        real,
        block: Block | None = None,
        again: tuple[tuple, dict] | None = None,
    ) -> None:
        """Runs what replaces the `real` result, and notes whether both are alike; a result that is not finite
        decides nothing."""
        if not _finite(real):
            self._unseen.add(kind)
            return
        try:
            given = run()
            before = [] if block is None or again is None else list(block.spec.take(*again).values())
            self.passed[kind] = _alike(given, real, before)
        except _BROKEN as error:
            if is_out_of_memory(error):
                raise
            self.passed[kind] = False


def verdict(
    settings: CacheConfig, passed: dict[str, bool], family: str, host: str = "", guess: bool = False
) -> tuple[CacheConfig, str | None]:
    """The config at a coarser level where aggressive steps did not pass, and a sentence about all that did
    not; None where all did.

    guess: whether the blocks are guessed."""
    instead, before = [], settings
    if not passed.get("A", True):
        settings = coarser(settings, COARSER[settings.level])
        instead.append(f"aggressive steps put back {NAMES[settings.level]}")
    if not passed.get("C", True):
        instead.append("conservative steps run in full")
    if not instead:
        return settings, None
    if guess:
        found = f"The blocks found in {family} do not work as one stack that can be skipped"
        return settings, " ".join(
            [f"{found}; {' and '.join(instead)}.", *filter(None, [gave_way(before, settings)])]
        )
    where, forecast = f" in {host}" if host else "", gave_way(before, settings)
    return settings, (
        f"The blocks of {family} do not behave{where} as registered in this pack, or another node has "
        "changed them; "
        f"{' and '.join(instead)}.{f' {forecast}' if forecast else ''}"
    )


def _code(module: nn.Module):
    """What tells blocks apart that one class makes, where another node has rewritten some of them."""
    forward = getattr(module.forward, "__func__", module.forward)
    return getattr(forward, "__code__", forward)


def _tensors(value) -> list[torch.Tensor]:
    return (
        [value]
        if isinstance(value, torch.Tensor)
        else [t for v in value for t in _tensors(v)]
        if not isinstance(value, str)
        else []
    )


def _finite(value) -> bool:
    """Whether all numbers of a result are finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    return not isinstance(value, (tuple, list)) or all(map(_finite, value))


def _alike(given, real, before=()) -> bool:
    """Whether one result can replace the other: same structure, and equal but for rounding.

    before: what a block was given. Rows that are computed apart from the others are rounded otherwise, so a
        part of what the block adds is allowed beside the rounding of its sum; of results of whole models a
        part of the result."""
    if isinstance(real, torch.Tensor):
        if not isinstance(given, torch.Tensor) or given.shape != real.shape or given.dtype != real.dtype:
            return False
        if not real.is_floating_point():
            return torch.equal(given, real)
        whole, share = real.float(), 1e-3 if real.dtype in (torch.float32, torch.float64) else 0.05
        added = next((whole - b.float() for b in before if b.shape == real.shape), None)
        size, eps = whole.norm(), torch.finfo(real.dtype).eps
        slack = 2 * eps * size + (share * added.norm() if added is not None else 1e-5 * size)
        return bool((given.float() - whole).norm() <= slack)
    if isinstance(real, (tuple, list)):
        return (
            isinstance(given, (tuple, list))
            and len(given) == len(real)
            and all(_alike(g, r, before) for g, r in zip(given, real))
        )
    return (given is None) == (real is None)


class _Random:
    """Lets what runs inside draw the random numbers that the call drew, and resets the generators after
    it."""

    def __init__(self, args, kwargs):
        devices = {
            v.device for v in _tensors([v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)])
        }
        self._cuda = [d for d in devices if d.type == "cuda"]
        self._states = self._now()

    def _now(self):
        return torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self._cuda]

    def _set(self, states) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._cuda, states[1]):
            torch.cuda.set_rng_state(state, device)

    def __enter__(self):
        self._behind = self._now()
        self._set(self._states)

    def __exit__(self, *_):
        self._set(self._behind)
