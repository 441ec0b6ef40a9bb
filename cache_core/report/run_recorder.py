"""What a run writes down while it goes on: records of its evaluations, sentences, sizes, and the report at
its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from ..base.coordinates import Node
from ..base.names import FINAL, OUTPUT, STACK
from ..cache.feature_cache import Site
from ..cache.feature_predictor import FeaturePredictor
from ..cache.transfers import downloaded
from ..config import CacheConfig
from ..hooks.call_context import Call
from ..models.families import Block
from ..schedule.cost import CostModel
from ..schedule.masks import Mask
from ..schedule.plan import CacheSchedule
from .run_report import Report, StepRecord

WHOLE = (FINAL, OUTPUT, STACK)
"""Sites of a whole model, of which each stream has one."""
TOKENS = 1000
"""Tokens, as many at least, that the error of a forecast is measured on."""


class RunRecorder:
    """What one run has recorded so far.

    seconds: the clock. aggressive: work of an aggressive step as a share of a full one. held: bytes in caches
        now. Errors and indicators stay tensors on their device until the report is made, so that no step
        waits for one."""

    def __init__(self, seconds: Callable[[], float] = time.perf_counter):
        self.records: list[StepRecord] = []
        self.messages: list[str] = []
        self.family = ""
        self.aggressive = 0.0
        self.held = 0
        self._peak = 0
        self._size: CostModel | None = None
        self._errors: dict[int, torch.Tensor] = {}
        self._measured: dict[int, set] = {}
        self._indicators: dict[int, torch.Tensor] = {}
        self._seconds = seconds
        self._start = self._mark = seconds()

    @property
    def record(self) -> StepRecord | None:
        """Of the evaluation that goes on."""
        return self.records[-1] if self.records else None

    def say(self, message: str) -> None:
        """Adds a sentence, once."""
        if message not in self.messages:
            self.messages.append(message)

    def close(self) -> None:
        """An evaluation has ended."""
        now = self._seconds()
        if self.records:
            self.records[-1].milliseconds = (now - self._mark) * 1e3
        self._mark = now

    def ran(self, call: Call, blocks: Sequence[Block], held: int | None, during: int) -> None:
        """A call has run; held: bytes in caches behind it, None where it kept nothing. during: bytes of the
        caches before it and of its probes, which lay side by side."""
        if self._size is None and call.tokens:
            kinds = Counter(b.name[0] for b in blocks)
            self._size = CostModel(
                call.width, call.tokens - call.n_txt, call.n_txt, kinds["double"], kinds["single"]
            )
        self._note_indicator(call)
        self._peak = max(self._peak, during)
        if held is not None:
            self.held, self._peak = held, max(self._peak, held)
        self.records[-1].cached_bytes = self.held

    def note_error(self, site: Site | None, truth: torch.Tensor, rule: FeaturePredictor, now: Node) -> None:
        """How far off a forecast of the feature `truth` [B,N,d] at a site would have been, once per
        evaluation; of several streams of the whole model the worst."""
        index = len(self.records) - 1
        seen = self._measured.setdefault(index, set())
        if site is None or not site.snapshots or site.name in seen or (seen and site.name[:2] not in WHOLE):
            return
        own, kept = truth[: site.snapshots[0].shape[0]], site.snapshots[0]
        if own.shape != kept.shape:
            return
        seen.add(site.name)
        stride = max(1, own.shape[1] // TOKENS) if own.ndim == 3 else 1
        some, guess = own[:, ::stride].float(), site.sampled(rule, now, stride)
        error = (guess.float() - some).norm() / some.norm().clamp_min(1e-12)
        worst = self._errors.get(index)
        self._errors[index] = error if worst is None else torch.maximum(worst, error)

    def _note_indicator(self, call: Call) -> None:
        """Keeps what the forecast of this evaluation went by: of the first branch and the first site that
        says so."""
        sites = call.batch.branches[0].sites.values()
        found = next((s.learned["indicator"] for s in sites if "indicator" in s.learned), None)
        if found is not None:
            self._indicators.setdefault(len(self.records) - 1, found)
            for site in sites:
                site.learned.pop("indicator", None)

    def report(
        self, settings: CacheConfig, schedule: CacheSchedule, mask: Mask | None, estimate: int
    ) -> Report:
        """What happened; estimate: bytes that were expected."""
        wall = self._seconds() - self._start
        notes = [("forecast_error", i, v) for i, v in self._errors.items()]
        notes += [("indicator", i, v) for i, v in self._indicators.items()]
        for (name, i, _), number in zip(notes, downloaded([v for _, _, v in notes])):
            setattr(self.records[i], name, number)
        self._errors.clear()
        self._measured.clear()
        self._indicators.clear()
        return Report(
            records=self.records,
            method=settings.method,
            family=self.family,
            predictor=settings.predictor.name,
            selector=settings.selector.score,
            steps=schedule.steps,
            wall_seconds=wall,
            messages=self.messages,
            peak_bytes=self._peak,
            estimated_bytes=estimate,
            schedule=schedule.to_dict(),
            conservative_cost=self._conservative_cost(settings, mask),
            aggressive_cost=self.aggressive,
        )

    def _conservative_cost(self, settings: CacheConfig, mask: Mask | None) -> float | None:
        """Work of a conservative step as a share of a full one, on average."""
        size, conservative = self._size, [r for r in self.records if r.actual == "C"]
        if not conservative or size is None:
            return None

        def work(r: StepRecord) -> float:
            return (
                size.flops_computed(mask.at(r.step))
                if mask
                else size.flops_conservative(r.ratio, live_attention=settings.attention == "live")
            )

        return sum(map(work, conservative)) / len(conservative) / size.flops_full()
