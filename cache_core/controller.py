"""The loop: decides for every evaluation whether it runs in full, conservatively or aggressively.

A controller belongs to one sampling run. The host tells it when an evaluation begins and wraps every model
call in `call` or `guarded`; all state lives here and in what it owns, and is gone after `finish`.

The stages of an evaluation: `begin_evaluation` decides its kind from the plan; every model call of it takes
that kind where its branches allow it (`_kind_of_call`), is prepared (`_prepared`) and runs inside the shims
that `_installed` sets; behind the last call the record is closed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from .base.coordinates import Node
from .base.errors import CacheMismatch, CacheTooLarge, is_out_of_memory
from .base.names import FINAL, OUTPUT, STACK
from .cache.feature_cache import Batch, Branch
from .config import CacheConfig
from .hooks.call_context import Call
from .hooks.compilation import Compilation
from .hooks.model_binding import Model
from .hooks.model_output import rule_of
from .indicators.guard import CONTROL, STALE, Guard
from .memory.budget import Budget
from .report.run_report import Report, StepRecord
from .run.model_call import installed, left_alone
from .run.state import LastCall, RunState
from .schedule.evaluation_counter import Evaluation, EvaluationCounter


@dataclass
class _Now:
    """The running evaluation: where it stands, and its record, which holds what was planned and what ran."""

    at: Evaluation
    node: Node
    record: StepRecord


class Controller(RunState):
    """Caching of one sampling run.

    settings: what to do.
    sigmas: the sampler's noise levels, one more than steps.
    stages: evaluations per step, or of each (see `schedule.sampler_traits`).
    refusal: why every step of this run is sampled plainly, as the host found out, or None.
    seconds: the clock.
    flow: whether sigma is the share of noise of a flow model, for log-SNR.
    host: name and version of what runs the models, for messages.
    budget: of memory, None for no limit.
    fresh_noise: whether the sampler adds fresh noise at its steps.
    prediction: what the model predicts, a key of `base.coordinates.PREDICTIONS`; empty: as `flow` says.

    Raises ValueError for fewer than two sigmas. The host sets `compilation` where the model of a call is
    compiled.
    """

    def __init__(
        self,
        settings: CacheConfig,
        sigmas: Sequence[float],
        stages: int | Sequence[int] = 1,
        refusal: str | None = None,
        seconds=time.perf_counter,
        flow: bool = True,
        host: str = "",
        budget: Budget | None = None,
        fresh_noise: bool = False,
        prediction: str = "",
    ):
        super().__init__(
            settings, sigmas, stages, refusal, seconds, flow, host, budget, fresh_noise, prediction
        )
        self._evaluations = EvaluationCounter(self.steps, stages)
        self._now: _Now | None = None
        self._guard, self._guard_tripped = Guard(), False

    # --- what the host calls ----------------------------------------------------------------------------

    @property
    def done(self) -> list[StepRecord]:
        """Records of the evaluations that have ended."""
        return self.book.records[:-1]

    def begin_evaluation(self, sigma: float) -> None:
        """The sampler evaluates the model next, at noise level `sigma`.

        Once per evaluation, however many model calls it takes.
        """
        self.book.close()
        at = self._evaluations.tick(float(sigma))
        self._store.begin()
        if (at.step, at.phase) == (1, 0):
            self.memory.settle()
            self.memory.estimate = self._need().total
        planned = "F" if at.beyond else self.schedule.kinds[at.step]
        kind, reason = self._kind_of_evaluation(at, planned)
        if kind == "F":
            self.memory.forget(self._store.forget_unused(at.step))
        elif self._store.offloaded is not None:
            self._store.offloaded.start()
        ratio = 0.0 if at.beyond else 1.0 if self._mask else self.schedule.ratios[at.step]
        record = StepRecord(at.step, at.phase, at.sigma, planned, kind, reason, calls=0, ratio=ratio)
        self.book.records.append(record)
        self._now = _Now(at, Node(float(at.step), at.sigma, self._flow, self._prediction), record)

    @contextmanager
    def call(
        self,
        model: nn.Module,
        chunks: Sequence[Hashable],
        grid: tuple[int, int] | None = None,
        refusal: str | None = None,
        latent: torch.Tensor | None = None,
        control: float | None = None,
    ) -> Iterator[str]:
        """Wraps one model call; yields the kind it runs as.

        model: the diffusion model that really runs.
        chunks: one key per branch in the batch, in batch order, naming all that tells branches apart.
        grid: rows and columns of the image tokens.
        refusal: why this call runs plainly, as the host found out, or None.
        latent: [B,...], the model's input, by which the guard sees that content has changed place; or None.
        control: size of what control networks add, None without them.

        Raises CacheMismatch out of the model when what is cached does not fit; the host then repeats the call
        inside `retry`.
        """
        known = self._model(model)
        now, refusal = self._now, refusal or known.refusal
        if now is None or refusal or not self._active:
            if refusal and self._active:
                self.say(f"{known.name} is sampled plainly: {refusal}.")
            if now is not None:
                self._count(now.record, "F", "guard" if self._guard_tripped else "plain")
            with left_alone(known, self.compilation):
                yield "F"
            return
        keys = self._store.keys((id(model), now.at.phase), chunks)
        branches = self._store.take(keys, now.at.step)
        if latent is not None and not self._fresh_noise:
            self._guard.compare(now.at.step, branches, latent)
        kind, reason = self._kind_of_call(now.record, branches, known, control)
        if kind == "F":
            for branch in branches:
                branch.control = control
        self._last = LastCall(keys, kind)
        yield from self._run(now, known, branches, kind, reason, grid)

    @contextmanager
    def retry(self, model: nn.Module, grid=None) -> Iterator[str]:
        """Repeats the last call in full, after CacheMismatch; its branches start afresh."""
        now, last, known = self._now, self._last, self._model(model)
        assert now is not None and last is not None, "retry repeats a call"
        now.record.calls -= 1
        now.record.full_calls -= last.kind == "F"
        if not self._active:
            now.record.calls, now.record.full_calls = now.record.calls + 1, now.record.full_calls + 1
            if now.record.planned != "F":
                now.record.actual, now.record.reason = "F", "memory"
            with left_alone(known, self.compilation):
                yield "F"
            return
        branches = self._store.renew(last.keys)
        self._last = LastCall(last.keys, "F")
        yield from self._run(now, known, branches, "F", "mismatch", grid)

    def guarded(
        self,
        run: Callable,
        model: nn.Module,
        chunks: Sequence[Hashable],
        grid: tuple[int, int] | None = None,
        refusal: str | None = None,
        latent: torch.Tensor | None = None,
        control: float | None = None,
    ):
        """One model call, `run()`, inside `call`; repeated in full where the caches do not fit the call or
        the memory.

        Returns what `run` returned. When memory runs out while something is cached, that is freed and the
        rest of the run is sampled plainly.
        """
        attempt, mismatches = self.call(model, chunks, grid, refusal, latent, control), 0
        while True:
            try:
                with attempt:
                    return run()
            except CacheMismatch as mismatch:
                mismatches += not isinstance(mismatch, CacheTooLarge)
                if mismatches > 1:
                    raise
                self.say(str(mismatch))
            except Exception as error:
                if not is_out_of_memory(error) or not self._freed_after(error):
                    raise
            if not self._active:
                gc.collect()  # what the failed call has left behind
            attempt = self.retry(model, grid)

    def finish(self) -> Report:
        """Closes the run, frees every cached tensor and returns what happened."""
        self.book.close()
        self._drop()
        self._models.clear()
        return self.book.report(self.settings, self.schedule, self._mask, self.memory.estimate)

    # --- which kind -------------------------------------------------------------------------------------

    def _kind_of_evaluation(self, at: Evaluation, planned: str) -> tuple[str, str]:
        """The kind of an evaluation before its first call, and why it differs from the plan."""
        if at.beyond:
            return planned, "beyond"
        if planned != "F" and self._refusal is not None:
            return "F", self._refusal
        if planned != "F" and at.rising:
            return "F", "rising"
        in_force = self._kinds_in_force[at.step]
        if in_force == planned:
            return in_force, "planned"
        return in_force, "guard" if self._guard_tripped else "memory"

    def _guarded(self) -> bool:
        """Whether what the model is given has changed altogether between two steps."""
        found = None if self._guard_tripped else self._guard.tripped()
        if found is not None:
            self._guard_tripped = True
            if self._observer is None:
                self._stop()  # nothing that is kept would be used again
            self.say(
                f"At step {found + 1} the model was given something else than at the step before, as it is "
                "with tiles or windows that move: cached features do not fit, so the rest of the run is "
                "sampled in full. Take Dual Cache out here, or keep the tiles in place."
            )
        return self._guard_tripped

    def _kind_of_call(
        self, record: StepRecord, branches: list[Branch], known: Model, control: float | None
    ) -> tuple[str, str]:
        """The kind a call can really run as, and why it differs from the evaluation's.

        A call that must run in full leaves the other calls of its evaluation as they are, those before it;
        those behind it run in full too.
        """
        kind = record.actual
        if kind == "F":
            return "F", record.reason
        if self._guarded():
            return "F", "guard"
        if any(b.signature is None for b in branches):
            return "F", "no_snapshot"
        if any(b.control_changed(control) for b in branches):
            self.say(CONTROL)
            return "F", "control"
        if any(b.full_at is None or record.step - b.full_at > self.longest_gap for b in branches):
            self.say(STALE)
            return "F", "stale"
        if kind == "C" and not known.conserves(self._mask is not None):
            if known.rows:
                self.say(
                    "Conservative steps ran in full: "
                    + (
                        f"the modules of {known.name} cannot be chosen one by one."
                        if self._mask
                        else f"this pack cannot refresh single tokens of {known.name}."
                    )
                )
            return "F", "refused"
        if kind == "C" or known.settings.level == "module":
            refused = next((b.refusal for b in branches if b.refusal is not None), None)
            if refused is not None:
                steps = "Conservative steps" if kind == "C" else "Aggressive steps at the modules"
                self.say(f"{steps} ran in full: {refused}.")
                return "F", "refused"
        return kind, record.reason

    # --- one call ---------------------------------------------------------------------------------------

    @staticmethod
    def _count(record: StepRecord, kind: str, reason: str) -> None:
        """Counts a call; one that runs in full makes its evaluation a full one."""
        record.calls += 1
        if kind == "F":
            record.full_calls += 1
            if record.actual != "F":
                record.actual, record.reason = "F", reason

    def _run(
        self,
        now: _Now,
        known: Model,
        branches: list[Branch],
        kind: str,
        reason: str,
        grid: tuple[int, int] | None,
    ) -> Iterator[str]:
        """A call whose features are kept or put back."""
        self._count(now.record, kind, reason)
        since = self._store.ran(kind, now.at.phase, now.at.step, branches)
        call = self._prepared(now, known, branches, kind, since, grid)
        check = self._check_of(known, call)
        if self.compilation is None:
            self.compilation = Compilation.of_blocks(known.module, known.family)
        compilation = self.compilation
        if compilation is not None:
            self.say(compilation.said)
        held = self._store.bytes if known.settings.predictor.probe else 0
        with installed(known, call, compilation, check):
            yield kind
        if known.blocks and not call.arrived:
            self._uncount(now.record, kind)
        if call.repeated and kind == "F":
            self._refuse_repeated(known)
        if check is not None:
            self._judged(known, check.passed)
        held += call.batch.probed() if self._active else 0
        call.batch.end()
        # Aggressive calls keep nothing.
        self.book.ran(call, known.blocks, None if kind == "A" else self._store.bytes, held)

    @staticmethod
    def _uncount(record: StepRecord, kind: str) -> None:
        """A call that another node answered without running the model."""
        record.calls -= 1
        record.full_calls -= kind == "F"

    def _refuse_repeated(self, known: Model) -> None:
        """Stops caching a model whose blocks run several times within one call."""
        why = "its blocks run several times within one model call, so one pass would get another's features"
        self._store.renew_model(id(known.module))
        self._keep(replace(self._models[id(known.module)], refused=why))

    def _prepared(
        self,
        now: _Now,
        known: Model,
        branches: list[Branch],
        kind: str,
        since: int,
        grid: tuple[int, int] | None,
    ) -> Call:
        """What the hooks know of the running call; since: steps since the last full one."""
        settings = known.settings
        conservative = self._conserves(known)
        observes_modules = self._observer is not None and self._observer.modules
        call = Call(
            kind,
            Batch(branches, now.node, self.skips, self.longest_gap),
            settings,
            now.at.step,
            since + 1,
            now.record.ratio,
            grid,
            note=self._observed(now, branches, known),
            rows=conservative and self._mask is None,
            modules=conservative or settings.level == "module" or observes_modules,
            observed=self._observer is not None,
            computed=self._mask.at(now.at.step) if self._mask and kind == "C" else None,
            block_names=tuple(b.name for b in known.blocks) if conservative else (),
        )
        call.sizes_known = self._sizes_known(known, call)
        return call

    def _observed(self, now: _Now, branches: list[Branch], known: Model) -> Callable:
        """What every site of a full step tells its value to before it is kept.

        The error of the forecast is measured on the first branch, at the level's last site of every stream.
        """
        witness = known.blocks[-1].name if known.blocks else ()

        def observed(name: tuple, truth: torch.Tensor) -> None:
            if self._observer is not None:
                for branch, part in zip(branches, truth.chunk(len(branches))):
                    self._observer.observe(branch, name, part, now.node)
            if name[:2] in (FINAL, OUTPUT, STACK, witness):
                self.book.note_error(
                    branches[0].sites.get(name), truth, rule_of(known.settings, name), now.node
                )

        return observed
