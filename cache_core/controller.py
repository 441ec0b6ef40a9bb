"""The one loop: decides for every evaluation whether it runs in full, conservatively or aggressively, and
keeps what that needs.

A controller belongs to one sampling run. The host tells it when an evaluation begins and wraps every model
call in `call`; all state lives here and is gone after `finish`."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from .base.coordinates import Node, same_levels
from .base.errors import CacheMismatch, CacheTooLarge, is_out_of_memory, raised_here
from .base.names import FINAL, OUTPUT, STACK
from .cache.feature_cache import Batch, Branch
from .cache.offload import Shelf
from .config import Settings
from .hooks.call_context import Call
from .hooks.compilation import Compilation
from .hooks.model_binding import Model, meet
from .hooks.self_check import SelfCheck, verdict
from .hooks.shims import shim
from .memory.budget import Budget, Memory, Wanted, steps_down
from .memory.estimate import Footprint, expected_shapes
from .models.detection import DETECTED
from .predictors.build import watches
from .report.run_recorder import Logbook
from .report.run_report import Report, StepRecord
from .schedule.evaluation_counter import Clock, Evaluation
from .selectors import token_selection as selectors

__all__ = ["FINAL", "OUTPUT", "STACK", "CacheMismatch", "Controller"]


class Controller:
    """Caching of one sampling run.

    settings: what to do. sigmas: the sampler's noise levels, one more than steps. stages: evaluations per
        step, or of each (see `clock`).
    refusal: why every step of this run is sampled plainly, as the host found out, or None. flow: whether
        sigma is the share of noise of a flow model, for log-SNR. host: name and version of what runs the
        models, for sentences. budget: of memory, None for no limit. Raises ValueError for fewer than two
        sigmas. The host sets `compilation` where the model of a call is compiled."""

    def __init__(
        self,
        settings: Settings,
        sigmas: Sequence[float],
        stages: int | Sequence[int] = 1,
        refusal: str | None = None,
        seconds=time.perf_counter,
        flow: bool = True,
        host: str = "",
        budget: Budget | None = None,
    ):
        if len(sigmas) < 2:
            raise ValueError("sigmas must hold at least two noise levels.")
        self.steps, self._flow, self._host = len(sigmas) - 1, flow, host
        self.book = Logbook(seconds)
        self._ends = Node(0.0, float(sigmas[0]), flow), Node(float(self.steps), float(sigmas[-1]), flow)
        self.settings = settings = self._spanned(settings, sigmas)
        self.schedule = settings.schedule_for(self.steps)
        self._mask = settings.mask and settings.mask.scaled(self.steps)
        if settings.mask is not None and settings.mask.steps != self.steps:
            self.say(
                f"The mask was made for {settings.mask.steps} steps; its refreshes stand at the same "
                f"places of the {self.steps}."
            )
        elif (
            settings.mask is None and settings.schedule is not None and settings.schedule.steps != self.steps
        ):
            self.say(
                f"The schedule was made for {settings.schedule.steps} steps and has been scaled to "
                f"{self.steps}."
            )
        self._clock = Clock(self.steps, stages)
        self._branches: dict[Hashable, Branch] = {}
        self._used: dict[Hashable, int] = {}
        self._full_steps = (0, 0)
        self._blocks: dict[int, Model] = {}
        self._seen: Counter = Counter()
        self._keys: list[Hashable] = []
        self._now: Evaluation | None = None
        self._last_full: dict[int, int] = {}
        self.memory = Memory(budget, stages if isinstance(stages, int) else max(stages))
        self._kinds = self.schedule.kinds
        self._shelf: Shelf | None = None
        self._rows = "C" in self.schedule.kinds
        self._witness: tuple = ()
        self._site_rule = settings.predictor
        self._called: list[Branch] = []
        self._kind = "F"
        self.compilation: Compilation | None = None
        self._refusal = refusal
        self._skips = self.skips or (refusal is None and watches(settings.predictor))
        if refusal is not None:
            self.say(f"Nothing was cached: {refusal}.")

    def _spanned(self, settings: Settings, sigmas: Sequence[float]) -> Settings:
        """Predictors that fit a curve to a whole run are told where it begins and ends; those solved for
        another run are replaced."""

        def over(part):
            solved = getattr(part, "solved", False)
            if solved and part.steps != self.steps:
                self.say(
                    f"The forecast was solved for {part.steps} steps; at {self.steps} a "
                    f"{part.fallback.name} one stands in for it."
                )
                part = part.fallback
            elif solved and part.sigmas and not same_levels(part.sigmas, sigmas):
                self.say(
                    f"The forecast was solved for other noise levels; a {part.fallback.name} one stands "
                    "in for it. Make the "
                    "plan for the run's noise levels, or sample at the plan's: connect sigmas."
                )
                part = part.fallback
            return part.over_run(*self._ends)

        modules = settings.module_predictor
        return replace(
            settings, predictor=over(settings.predictor), module_predictor=modules and over(modules)
        )

    def say(self, message: str) -> None:
        """Adds a sentence to the report, once."""
        self.book.say(message)

    @property
    def messages(self) -> list[str]:
        """Sentences said so far."""
        return self.book.messages

    def begin_evaluation(self, sigma: float) -> None:
        """Tells that the sampler evaluates the model next, at noise level `sigma` (once per evaluation,
        however many calls it takes)."""
        self.book.close()
        now = self._now = self._clock.tick(float(sigma))
        self._seen.clear()
        if (now.step, now.phase) == (1, 0):
            self.memory.settle()
            self.memory.estimate = self._need().total
        planned = "F" if now.beyond else self.schedule.kinds[now.step]
        kind, reason = planned, "planned"
        if now.beyond:
            reason = "beyond"
        elif planned != "F" and self._refusal is not None:
            kind, reason = "F", self._refusal
        elif planned != "F" and now.rising:
            kind, reason = "F", "rising"
        elif planned != (fitted := self._kinds[now.step]):
            kind, reason = fitted, "memory"
        if kind == "F":
            self._forget_unused(now.step)
        elif self._shelf is not None:
            self._shelf.start()
        ratio = 0.0 if now.beyond else 1.0 if self._mask else self.schedule.ratios[now.step]
        self.book.records.append(
            StepRecord(now.step, now.phase, now.sigma, planned, kind, reason, calls=0, ratio=ratio)
        )

    def _forget_unused(self, step: int) -> None:
        """Frees branches that no step has used since the full step before the last: context windows that move
        do not come back."""
        older, self._full_steps = self._full_steps[0], (self._full_steps[1], step)
        for key in [k for k, used in self._used.items() if used < older]:
            del self._used[key]
            self._branches.pop(key, None)
            self.memory.forget([key])

    @contextmanager
    def call(
        self,
        model: nn.Module,
        chunks: Sequence[Hashable],
        grid: tuple[int, int] | None = None,
        refusal: str | None = None,
    ) -> Iterator[str]:
        """Wraps one model call; yields the kind it runs as.

        model: the diffusion model that really runs. chunks: one key per branch in the batch, in batch order,
            naming all that tells branches apart. grid: rows and columns of the image tokens. refusal: why
            this call runs plainly, as the host found out, or None. Raises CacheMismatch out of the model when
            what is cached does not fit; the host then repeats the call inside `retry`."""
        known = self._model(model)
        record, now, refusal = self.book.record, self._now, refusal or known.refusal
        if now is None or refusal or not self._skips:
            if refusal and self._skips:
                self.say(f"{known.name} is sampled plainly: {refusal}.")
            if record is not None:
                record.calls += 1
                record.full_calls += 1
                if record.actual != "F":
                    record.actual, record.reason = "F", "plain"
            yield from self._plainly(known)
            return
        self._keys = []
        for chunk in chunks:
            # The same branch may be evaluated several times in a step; each occurrence keeps its own cache.
            key = (id(model), now.phase, chunk)
            self._keys.append((key, self._seen[key]))
            self._seen[key] += 1
        branches = [self._branches.setdefault(k, Branch(self._shelf)) for k in self._keys]
        for branch, chunk in zip(branches, chunks):
            branch.evidence.branch = chunk
        self._used.update(dict.fromkeys(self._keys, now.step))
        kind, reason = self._kind_for(record, branches, known)
        yield from self._run(kind, reason, record, known, branches, grid)

    def _run(self, kind, reason, record, known, branches, grid):
        now, settings, self._kind = self._now, known.settings, kind
        record.calls += 1
        if kind == "F":
            record.full_calls += 1
            if record.actual != "F":
                record.actual, record.reason = "F", reason
            self._last_full[now.phase] = now.step
            for branch in branches:
                branch.forget_choices()
        self._called = branches
        batch, since = (
            Batch(branches, Node(float(now.step), now.sigma, self._flow)),
            now.step - self._last_full.get(now.phase, now.step),
        )
        watched = watches(settings.modules)
        conservative = self._rows and known.conserves(self._mask is not None)
        call = Call(
            kind,
            batch,
            settings,
            now.step,
            since + 1,
            record.ratio,
            grid,
            note=self._note_error,
            rows=conservative and self._mask is None,
            modules=conservative or settings.level == "module" or watched,
            computed=self._mask.at(now.step) if self._mask and kind == "C" else None,
        )
        call.door = self._door(known, call)
        blocks = known.blocks
        self._witness = blocks[-1].name if blocks else ()
        self._site_rule = settings.predictor
        shims, check = known.wiring(call).shims(known.module), None
        planned = known.unchecked if conservative else known.unchecked - {"C"}
        with ExitStack() as stack:
            if self.compilation is not None:
                self.say(self.compilation.said)
                stack.enter_context(self.compilation.around())
                whole = (
                    settings.level != "module"
                    if kind == "A"
                    else kind == "F" and not (call.modules or planned)
                )
                shims = self.compilation.shims(known.module, shims, blocks, whole)
            if kind == "F" and planned:
                check = SelfCheck(
                    call,
                    blocks,
                    known.wiring,
                    planned,
                    None if self._mask else max(self.schedule.ratios),
                    known.family.module == DETECTED,
                )
                stack.enter_context(check.around(known.module, shims))
            else:
                for part, maker in shims:
                    stack.enter_context(shim(part, maker))
            yield kind
        if check is not None:
            self._judged(known, check.passed)
        self.book.ran(
            call, blocks, None if kind == "A" else sum(b.bytes for b in self._branches.values())
        )  # A steps keep nothing

    def _plainly(self, known: Model) -> Iterator[str]:
        """A call that is left alone."""
        with (
            nullcontext()
            if self.compilation is None
            else self.compilation.left_alone(known.module, known.blocks)
        ):
            yield "F"

    def _judged(self, known: Model, passed: dict[str, bool]) -> None:
        """Goes on without what a self-check found wrong."""
        settings, sentence = verdict(known.settings, passed, known.name, self._host)
        unchecked = {
            k for k in known.unchecked if not passed.get(k) and (k == "C" or settings.level != "output")
        } - {k for k in passed if k == "C"}
        if sentence is not None:
            self.say(sentence)
            self._branches.update(
                (key, Branch(self._shelf)) for key in self._branches if key[0][0] == id(known.module)
            )
        rows = known.rows and passed.get("C", True)
        self._keep(replace(known, settings=settings, rows=rows, unchecked=frozenset(unchecked)))

    @contextmanager
    def retry(self, model: nn.Module, grid=None) -> Iterator[str]:
        """Repeats the last call in full, after CacheMismatch; the branches start afresh."""
        record = self.book.record
        record.calls -= 1
        record.full_calls -= self._kind == "F"
        if not self._skips:
            record.calls, record.full_calls = record.calls + 1, record.full_calls + 1
            if record.planned != "F":
                record.actual, record.reason = "F", "memory"
            yield from self._plainly(self._model(model))
            return
        branches = [Branch(self._shelf) for _ in self._keys]
        self._branches.update(zip(self._keys, branches))
        yield from self._run("F", "mismatch", record, self._model(model), branches, grid)

    def guarded(
        self,
        run: Callable,
        model: nn.Module,
        chunks: Sequence[Hashable],
        grid: tuple[int, int] | None = None,
        refusal: str | None = None,
    ):
        """One model call, `run()`, inside `call`; repeated in full where the caches do not fit the call or
        the memory.

        Gives what it returned. When memory runs out while something is cached, that is freed and the rest of
        the run is sampled plainly."""
        attempt, mismatches = self.call(model, chunks, grid, refusal), 0
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
                if not is_out_of_memory(error) or not self._give_way(error):
                    raise
            if not self._skips:
                gc.collect()  # what the failed call has left behind
            attempt = self.retry(model, grid)

    def _give_way(self, error: Exception) -> bool:
        """Frees everything that is cached and stops caching or recording; False when nothing is, and the
        error is the model's own."""
        held = any(b.bytes for b in self._branches.values())
        if not self._skips or not (held or raised_here(error)):
            return False
        self._stop()
        if watches(self.settings.predictor):
            self.settings.predictor.abandon("memory ran out during the run")
            self.say(
                "Memory ran out while the run was recorded, so the recording has ended, and the rest was "
                "sampled plainly."
            )
            return True
        self.say(
            "Memory ran out while features were cached: the caches have been freed, and the rest of the "
            "run was sampled plainly. "
            "Set memory to fewer GB, or choose a preset that keeps less."
        )
        return True

    def _stop(self) -> None:
        self._skips, self._rows, self._kinds = False, False, "F" * self.steps
        self._drop()

    def _drop(self) -> None:
        for branch in self._branches.values():
            branch.clear()  # the running call may hold it
        if self._shelf is not None:
            self._shelf.clear()
        self._branches.clear()
        self._called, self.book.held = [], 0
        selectors.forget()

    def _wanted(self, known: Model, kinds: str | None = None) -> Wanted:
        return Wanted(
            known.settings,
            kinds or self._kinds,
            self.schedule.ratios,
            self._mask,
            known.blocks,
            known.first,
            known.conserves(self._mask is not None),
        )

    def expect(
        self,
        model: nn.Module,
        latents: Sequence[Sequence[int]],
        text: int,
        dtype: torch.dtype,
        samples: int = 1,
    ) -> int | None:
        """Bytes that caches will hold, before the first call, or None where the model does not tell; see
        `expected_shapes`."""
        known = self._model(model)
        if not self._skips or known.refusal:
            return 0
        shapes = expected_shapes(model, known.family, known.blocks, latents, text, dtype, samples)
        return shapes and self.memory.expect(self._wanted(known), shapes)

    def _door(self, known: Model, call: Call):
        """What weighs the caches at the first block of every kind on a full step; CacheTooLarge when
        something has given way."""
        seen, keys = set(), list(self._keys)

        def door(name, sizes, item):
            if name[0] in seen:
                return
            seen.add(name[0])
            if self.memory.note(id(known.module), keys, name[0], sizes, item, call.batch_size // len(keys)):
                self._weigh()

        return door

    def _need(self) -> Footprint:
        return (
            self.memory.needs({i: self._wanted(m) for i, m in self._blocks.items()})
            if self._skips
            else Footprint()
        )

    def _weigh(self) -> None:
        memory, models, need = self.memory, self._blocks, self._need()
        memory.estimate = need.total
        if memory.fits(need, self._shelf is not None) or watches(self.settings.predictor):
            return
        self._drop()
        if self._shelf is None and memory.fits(need, True):
            self._shelf = Shelf()
            raise CacheTooLarge(memory.too_much(need, "snapshots are kept in main memory between two uses"))
        self._shelf = None
        for step in steps_down(self.settings, self._kinds, any(m.blocks for m in models.values())):
            if step.settings is None:
                memory.estimate = 0
                self._stop()
                break
            lowered = {i: m.lowered(step.settings, step.kinds, self._rows) for i, m in models.items()}
            less = memory.needs({i: self._wanted(m, step.kinds) for i, m in lowered.items()})
            if memory.fits(less, False):
                self.settings, memory.estimate = step.settings, less.total
                for model in lowered.values():
                    self._keep(model)
                self._kinds, self._rows = step.kinds, "C" in step.kinds
                break
        raise CacheTooLarge(memory.too_much(need, step.words))

    @property
    def skips(self) -> bool:
        """Whether the plan has steps that are not full, and nothing forbids them."""
        return self._refusal is None and self.schedule.kinds.strip("F") != ""

    @property
    def done(self) -> list[StepRecord]:
        """Records of the evaluations that have ended."""
        return self.book.records[:-1]

    def finish(self) -> Report:
        """Closes the run, frees every cached tensor and returns what happened."""
        self.book.close()
        self._drop()
        self._blocks.clear()
        return self.book.report(self.settings, self.schedule, self._mask, self.memory.estimate)

    def _model(self, module: nn.Module) -> Model:
        known = self._blocks.get(id(module))
        if known is None:
            known, sentences = meet(module, self.settings, self._kinds, self._mask, self._rows, self._skips)
            for sentence in sentences:
                self.say(sentence)
            if known.family and known.family.module != DETECTED:
                self.book.family = known.family.name
            self._keep(known)
        return known

    def _keep(self, known: Model) -> None:
        self._blocks[id(known.module)] = known
        self.book.aggressive = max(self.book.aggressive, known.aggressive)

    def _kind_for(self, record: StepRecord, branches: list[Branch], known: Model) -> tuple[str, str]:
        """The kind this call can really run as, and why it differs from the plan."""
        kind = record.actual
        if kind == "F":
            return "F", record.reason
        if any(b.signature is None for b in branches):
            return "F", "no_snapshot"
        if kind == "C" and not known.conserves(self._mask is not None):
            if known.rows:
                self.say(
                    f"Conservative steps ran in full: the modules of {known.name} cannot be chosen one "
                    "by one."
                    if self._mask
                    else "Conservative steps ran in full: this pack cannot refresh single tokens of "
                    f"{known.name}."
                )
            return "F", "refused"
        if kind == "C" or known.settings.level == "module":
            for branch in branches:
                if branch.refusal is not None:
                    steps = "Conservative steps" if kind == "C" else "Aggressive steps at the modules"
                    self.say(f"{steps} ran in full: {branch.refusal}.")
                    return "F", "refused"
        return kind, record.reason

    def _note_error(self, name: tuple, truth: torch.Tensor) -> None:
        """Measures how far off the forecast of a full step's feature would have been: of the first branch, at
        the level's last site."""
        if self._called and (name in (FINAL, OUTPUT, STACK) or name[:2] == self._witness):
            now = Node(float(self._now.step), self._now.sigma, self._flow)
            self.book.note_error(self._called[0].sites.get(name), truth, self._site_rule, now)
