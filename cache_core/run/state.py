"""What one run holds: its settings, its models, its branches and its memory, and what gives way.

`controller.Controller` adds the evaluations and the model calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..base.errors import CacheTooLarge, raised_here
from ..base.handles import Handle
from ..config import CacheConfig
from ..hooks.call_context import Call
from ..hooks.compilation import Compilation
from ..hooks.model_binding import Model, meet
from ..hooks.self_check import SelfCheck, verdict
from ..memory.budget import Budget, Memory, Wanted
from ..memory.estimate import Footprint, expected_shapes
from ..memory.lowering import first_that_fits
from ..models.detection import DETECTED
from ..report.run_recorder import RunRecorder
from .branches import BranchStore
from .fitted_config import fitted_to_run


@dataclass
class LastCall:
    """The last model call: the keys of its branches and the kind it ran as."""

    keys: list[tuple]
    kind: str


class RunState(Handle):
    """The parameters are those of `controller.Controller`."""

    def __init__(
        self,
        settings: CacheConfig,
        sigmas: Sequence[float],
        stages: int | Sequence[int],
        refusal: str | None,
        seconds: Callable[[], float],
        flow: bool,
        host: str,
        budget: Budget | None,
        fresh_noise: bool,
        prediction: str,
    ):
        if len(sigmas) < 2:
            raise ValueError("sigmas must hold at least two noise levels.")
        self.steps, self._flow, self._host = len(sigmas) - 1, flow, host
        self._prediction, self._fresh_noise = prediction, fresh_noise
        self.book = RunRecorder(seconds)
        self.settings, self.schedule, self._mask, said = fitted_to_run(
            settings, sigmas, flow, fresh_noise and refusal is None, refusal is not None
        )
        for sentence in said:
            self.say(sentence)
        self.memory = Memory(budget, stages if isinstance(stages, int) else max(stages))
        self.compilation: Compilation | None = None
        self._refusal = refusal
        self._store = BranchStore()
        self._models: dict[int, Model] = {}
        self.longest_gap = self.schedule.longest_gap
        self._kinds_in_force = self.schedule.kinds  # the plan, less what memory does not allow
        self._last: LastCall | None = None
        self._observer = settings.observer if refusal is None else None
        self._active = self.skips or self._observer is not None
        if refusal is not None:
            self.say(f"Nothing was cached: {refusal}.")

    def say(self, message: str) -> None:
        """Adds a sentence to the report, once."""
        self.book.say(message)

    @property
    def messages(self) -> list[str]:
        """Sentences said so far."""
        return self.book.messages

    @property
    def skips(self) -> bool:
        """Whether the plan has steps that are not full, and nothing forbids them."""
        return self._refusal is None and self.schedule.kinds.strip("F") != ""

    def expect(
        self,
        model: nn.Module,
        latents: Sequence[Sequence[int]],
        text: int,
        dtype: torch.dtype,
        samples: int = 1,
    ) -> int | None:
        """Bytes that caches will hold, before the first call, or None where the model does not tell; see
        `memory.estimate.expected_shapes`."""
        known = self._model(model)
        if not self._active or known.refusal:
            return 0
        shapes = expected_shapes(model, known.family, known.blocks, latents, text, dtype, samples)
        return shapes and self.memory.expect(self._wanted(known), shapes)

    # --- models ---------------------------------------------------------------------------------------

    def _model(self, module: nn.Module) -> Model:
        known = self._models.get(id(module))
        if known is None:
            conservative = "C" in self._kinds_in_force
            known, sentences = meet(
                module, self.settings, self._kinds_in_force, self._mask, conservative, self._active
            )
            for sentence in sentences:
                self.say(sentence)
            if known.family and known.family.module != DETECTED:
                self.book.family = known.family.name
            self._keep(known)
        return known

    def _keep(self, known: Model) -> None:
        self._models[id(known.module)] = known
        self.book.aggressive = max(self.book.aggressive, known.aggressive)

    def _conserves(self, known: Model) -> bool:
        """Whether conservative steps are planned and can run on a model."""
        return "C" in self._kinds_in_force and known.conserves(self._mask is not None)

    def _check_of(self, known: Model, call: Call) -> SelfCheck | None:
        """The self-check that looks at a full call, while one is due."""
        unchecked = known.unchecked if self._conserves(known) else known.unchecked - {"C"}
        if call.kind != "F" or not unchecked:
            return None
        ratio = None if self._mask else max(self.schedule.ratios)
        guess = known.family is not None and known.family.module == DETECTED
        return SelfCheck(call, known.blocks, known.wiring, set(unchecked), ratio, guess)

    def _judged(self, known: Model, passed: dict[str, bool]) -> None:
        """Goes on without what a self-check found wrong."""
        guess = known.family is not None and known.family.module == DETECTED
        settings, sentence = verdict(known.settings, passed, known.name, self._host, guess)
        unchecked = {
            k for k in known.unchecked if not passed.get(k) and (k == "C" or settings.level != "output")
        } - {k for k in passed if k == "C"}
        if sentence is not None:
            self.say(sentence)
            self._store.renew_model(id(known.module))
        rows = known.rows and passed.get("C", True)
        self._keep(replace(known, settings=settings, rows=rows, unchecked=frozenset(unchecked)))

    # --- memory ---------------------------------------------------------------------------------------

    def _freed_after(self, error: Exception) -> bool:
        """Frees everything that is cached and stops caching or recording; False when nothing is, and the
        error is the model's own."""
        held = self._store.bytes or self._observer is not None
        if not self._active or not (held or raised_here(error)):
            return False
        self._stop()
        if self._observer is not None:
            self._observer.abandon("memory ran out during the run")
            self.say(
                "Memory ran out while the run was recorded, so the recording has ended, and the rest was "
                "sampled plainly."
            )
            return True
        self.say(
            "Memory ran out while features were cached: the caches have been freed, and the rest of the "
            "run was sampled plainly. Set memory to fewer GB, or choose a preset that keeps less."
        )
        return True

    def _stop(self) -> None:
        self._active, self._kinds_in_force = False, "F" * self.steps
        self._drop()

    def _drop(self) -> None:
        self._store.drop()
        self.book.held = 0

    def _wanted(self, known: Model, kinds: str | None = None) -> Wanted:
        return Wanted(
            known.settings,
            kinds or self._kinds_in_force,
            self.schedule.ratios,
            self._mask,
            known.blocks,
            known.first,
            known.conserves(self._mask is not None),
        )

    def _sizes_known(self, known: Model, call: Call) -> Callable:
        """What weighs the caches before the first block of every kind on a full step; it raises
        CacheTooLarge when something has given way."""
        assert self._last is not None  # the call that is being set up
        seen, keys = set(), list(self._last.keys)

        def sizes_known(name, sizes, item):
            if name[0] in seen:
                return
            seen.add(name[0])
            if self.memory.note(id(known.module), keys, name[0], sizes, item, call.batch_size // len(keys)):
                self._weigh()

        return sizes_known

    def _need(self) -> Footprint:
        if not self._active:
            return Footprint()
        return self.memory.needs({i: self._wanted(m) for i, m in self._models.items()})

    def _weigh(self) -> None:
        """Compares what the caches need with the budget; lowers the settings and raises CacheTooLarge where
        they do not fit."""
        memory, models, need = self.memory, self._models, self._need()
        memory.estimate = need.total
        if memory.fits(need, self._store.offloaded is not None) or self._observer is not None:
            return
        self._drop()
        room = memory.room_beside(need)
        if self._store.offload(memory.fits(need, True), room):
            raise CacheTooLarge(memory.too_much(need, memory.moved(need, room)))
        step, lowered, less = first_that_fits(
            memory, self.settings, self._kinds_in_force, models, lambda m, kinds: self._wanted(m, kinds)
        )
        memory.estimate = less.total
        if step.settings is None:
            self._stop()
        else:
            self.settings, self._kinds_in_force = step.settings, step.kinds
            for model in lowered:
                self._keep(model)
        raise CacheTooLarge(memory.too_much(need, step.words))
