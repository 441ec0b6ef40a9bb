"""The one loop: decides for every evaluation whether it runs in full, conservatively or aggressively, and keeps what that needs.

A controller belongs to one sampling run. The host tells it when an evaluation begins and wraps every model call in `call`; all
state lives here and is gone after `finish`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .clock import Clock, Evaluation
from .cost import CostModel
from .families import Block, blocks_of, find_family
from .flux_blocks import Call
from .history import Batch, Branch, Node
from .report import Report, StepRecord
from .settings import Settings
from .sites import CacheMismatch, shim

FINAL = ("final", "hidden")
"""The site of the final hidden state: the last block's output."""


class Controller:
    """Caching of one sampling run.

    settings: what to do. sigmas: the sampler's noise levels, one more than steps. stages: evaluations per step (see `clock`).
    refusal: why every step of this run is sampled plainly, as the host found out, or None. Raises ValueError for fewer than two sigmas.
    """

    def __init__(self, settings: Settings, sigmas: Sequence[float], stages: int = 1, refusal: str | None = None,
                 seconds=time.perf_counter):
        if len(sigmas) < 2:
            raise ValueError("sigmas must hold at least two noise levels.")
        self.settings, self.steps = settings, len(sigmas) - 1
        self.schedule = settings.schedule_for(self.steps)
        self.messages: list[str] = []
        if settings.schedule is not None and settings.schedule.steps != self.steps:
            self.say(f"The schedule was made for {settings.schedule.steps} steps and has been scaled to {self.steps}.")
        self._clock, self._seconds = Clock(self.steps, stages), seconds
        self._branches: dict[Hashable, Branch] = {}
        self._blocks: dict[int, tuple[nn.Module, list[Block]]] = {}
        self._seen: Counter = Counter()
        self._keys: list[Hashable] = []
        self._records: list[StepRecord] = []
        self._errors: dict[int, torch.Tensor] = {}
        self._now: Evaluation | None = None
        self._last_full: dict[int, int] = {}
        self._family = ""
        self._peak = 0
        self._size: CostModel | None = None
        self._start = self._mark = seconds()
        self._conserves = "C" in self.schedule.kinds
        self._refusal = refusal
        self._skips = refusal is None and self.schedule.kinds.strip("F") != ""
        if refusal is not None:
            self.say(f"Nothing was cached: {refusal}.")

    def say(self, message: str) -> None:
        """Adds a sentence to the report, once."""
        if message not in self.messages:
            self.messages.append(message)

    def begin_evaluation(self, sigma: float) -> None:
        """Tells that the sampler evaluates the model next, at noise level `sigma` (once per evaluation, however many calls it takes)."""
        self._close_record()
        now = self._now = self._clock.tick(float(sigma))
        self._seen.clear()
        planned = "F" if now.beyond else self.schedule.kinds[now.step]
        kind, reason = planned, "planned"
        if now.beyond:
            reason = "beyond"
        elif planned != "F" and self._refusal is not None:
            kind, reason = "F", self._refusal
        elif planned != "F" and now.rising:
            kind, reason = "F", "rising"
        ratio = 0.0 if now.beyond else self.schedule.ratios[now.step]
        self._records.append(StepRecord(now.step, now.phase, now.sigma, planned, kind, reason, calls=0, ratio=ratio))

    @contextmanager
    def call(self, model: nn.Module, chunks: Sequence[Hashable], grid: tuple[int, int] | None = None) -> Iterator[str]:
        """Wraps one model call; yields the kind it runs as.

        model: the diffusion model that really runs. chunks: one key per branch in the batch, in batch order, naming all that tells
        branches apart. grid: rows and columns of the image tokens. Raises CacheMismatch out of the model when what is cached does
        not fit; the host then repeats the call inside `retry`.
        """
        blocks = self._blocks_of(model)
        record, now = self._records[-1] if self._records else None, self._now
        if now is None or not blocks or not self._skips:
            if record is not None:
                record.calls += 1
                record.full_calls += 1
                if record.actual != "F":
                    record.actual, record.reason = "F", "unknown"
            yield "F"
            return
        self._keys = []
        for chunk in chunks:
            # The same branch may be evaluated several times in a step; each occurrence keeps its own cache.
            key = (id(model), now.phase, chunk)
            self._keys.append((key, self._seen[key]))
            self._seen[key] += 1
        branches = [self._branches.setdefault(k, Branch()) for k in self._keys]
        kind, reason = self._kind_for(record, branches)
        yield from self._run(kind, reason, record, id(model), branches, grid)

    def _run(self, kind, reason, record, model, branches, grid):
        now = self._now
        record.calls += 1
        if kind == "F":
            record.full_calls += 1
            if record.actual != "F":
                record.actual, record.reason = "F", reason
            self._last_full[now.phase] = now.step
            for branch in branches:
                branch.forget_choices()
        call = Call(kind, Batch(branches, Node(float(now.step), now.sigma)), self.settings, now.step,
                    now.step - self._last_full.get(now.phase, now.step) + 1, record.ratio, grid, modules=self._conserves,
                    model=model)
        with ExitStack() as stack:
            for block in self._blocks[model][1]:
                maker = self._shim_of(block, call)
                if maker is not None:
                    stack.enter_context(shim(block.module, maker))
            yield kind
        held = sum(b.bytes for b in self._branches.values())
        self._peak = max(self._peak, held)
        record.cached_bytes = held

    @contextmanager
    def retry(self, model: nn.Module, grid=None) -> Iterator[str]:
        """Repeats the last call in full, after CacheMismatch; the branches start afresh."""
        record = self._records[-1]
        branches = [Branch() for _ in self._keys]
        self._branches.update(zip(self._keys, branches))
        record.calls -= 1
        yield from self._run("F", "mismatch", record, id(model), branches, grid)

    @property
    def done(self) -> list[StepRecord]:
        """Records of the evaluations that have ended."""
        return self._records[:-1]

    def finish(self) -> Report:
        """Closes the run, frees every cached tensor and returns what happened."""
        self._close_record()
        for i, error in self._errors.items():
            self._records[i].forecast_error = float(error)
        wall = self._seconds() - self._start
        ratios = [r.ratio for r in self._records if r.actual == "C"]
        cost = None
        if ratios and self._size:
            live = self.settings.attention == "live"
            cost = self._size.flops_conservative(sum(ratios) / len(ratios), live_attention=live) / self._size.flops_full()
        self._branches.clear()
        self._blocks.clear()
        self._errors.clear()
        return Report(records=self._records, method=self.settings.method, family=self._family, predictor=self.settings.predictor.name,
                      selector=self.settings.selector.score, steps=self.steps, wall_seconds=wall, messages=self.messages,
                      peak_bytes=self._peak, schedule=self.schedule.to_dict(), conservative_cost=cost)

    def _close_record(self) -> None:
        now = self._seconds()
        if self._records:
            self._records[-1].milliseconds = (now - self._mark) * 1e3
        self._mark = now

    def _blocks_of(self, model: nn.Module) -> list[Block]:
        known = self._blocks.get(id(model))
        if known is None:
            family = find_family(model)
            blocks = blocks_of(model, family) if family else []
            if blocks:
                self._family = family.name
            else:
                self.say(f"{type(model).__name__} is not a model this pack knows; it was sampled plainly.")
            # The model is held so that its id stays its own.
            known = self._blocks[id(model)] = (model, blocks)
        return known[1]

    def _kind_for(self, record: StepRecord, branches: list[Branch]) -> tuple[str, str]:
        """The kind this call can really run as, and why it differs from the plan."""
        kind = record.actual
        if kind == "F":
            return "F", record.reason
        if any(FINAL not in b.sites for b in branches):
            return "F", "no_snapshot"
        if kind == "C":
            for branch in branches:
                if branch.refusal is not None:
                    self.say(f"Conservative steps ran in full: {branch.refusal}.")
                    return "F", "refused"
        return kind, record.reason

    def _shim_of(self, block: Block, call: Call):
        """The maker of a block's shim for a call, or None where the block runs untouched."""
        adapter, module, name = block.adapter, block.module, block.name
        if call.kind == "A":
            def make(original):
                if block.last:
                    return lambda *args, **kwargs: self._final(call, adapter.skip(adapter.bind(args, kwargs)))
                return lambda *args, **kwargs: adapter.skip(adapter.bind(args, kwargs))
            return make
        if call.kind == "F" and not call.modules:
            if not block.last:
                return None

            def work(original, bound):
                return original(**bound)
        else:
            step = adapter.record if call.kind == "F" else adapter.conserve

            def work(original, bound):
                return step(original, module, name, call, bound)

        def make(original):
            def forward(*args, **kwargs):
                bound = adapter.bind(args, kwargs)
                main = adapter.skip(bound)
                tokens = main[0].shape[1] + main[1].shape[1] if isinstance(main, tuple) else main.shape[1]
                if isinstance(main, tuple):
                    call.n_txt = main[1].shape[1]
                    main = main[0]
                call.batch_size = main.shape[0]
                if call.kind == "C":
                    self._check(call, main, tokens)
                out = work(original, bound)
                if block.last:
                    self._note_final(call, out)
                return out
            return forward
        return make

    def _final(self, call: Call, x: torch.Tensor) -> torch.Tensor:
        """The final hidden state rebuilt for an aggressive step; a fresh tensor, since the model may add to it in place."""
        self._check(call, x, x.shape[1])
        return call.batch.value(FINAL, self.settings.predictor, owned=True)

    @staticmethod
    def _check(call: Call, x: torch.Tensor, tokens: int) -> None:
        """Raises CacheMismatch when a block's input [B,N,d] of `tokens` joint tokens does not fit what is cached."""
        cached = [b.sites[FINAL].snapshots[0] for b in call.batch.branches]
        size = (sum(c.shape[0] for c in cached), *cached[0].shape[1:])
        if size != (x.shape[0], tokens, x.shape[2]) or cached[0].dtype != x.dtype:
            raise CacheMismatch("The model's tokens are not those of the last full step, so this call ran in full.")

    def _note_final(self, call: Call, out: torch.Tensor) -> None:
        """Stores the last block's output: as a snapshot on a full step, as a correction on a conservative one."""
        predictor = self.settings.predictor
        if self._size is None:
            kinds = Counter(b.name[0] for b in self._blocks[call.model][1])
            self._size = CostModel(out.shape[-1], out.shape[1] - call.n_txt, call.n_txt, kinds["double"], kinds["single"])
        if call.kind == "C":
            call.batch.correct(FINAL, out, predictor)
            return
        first = call.batch.branches[0].sites.get(FINAL)
        if first is not None and len(self._records) - 1 not in self._errors:
            truth = out[:first.snapshots[0].shape[0]]
            guess = first.value(predictor, call.batch.node)
            if guess.shape == truth.shape:
                self._errors[len(self._records) - 1] = (guess.float() - truth.float()).norm() / truth.float().norm().clamp_min(1e-12)
        call.batch.record(FINAL, out.clone(), predictor.needs)
