"""Where the reports of a patched model's runs are kept until a node asks for them."""

from __future__ import annotations

from collections import deque

import torch

from ...cache_core.base.handles import Handle
from ...cache_core.config import CacheConfig
from ...cache_core.report.run_report import Report

MOST_BYTES = 16 * 2**20
"""What the reports of one model may take in memory together; a report of 30 steps takes about 16 KB."""
RECORD_BYTES = 400
"""Memory of one record of an evaluation, measured with tracemalloc."""


class ReportBox(Handle):
    """Where the reports of a patched model's runs can be read. Copies of the model's options share it, so
    that the report is still found when another node clones the model."""

    def __init__(self, limit: int = MOST_BYTES):
        self._limit, self._size = limit, 0
        self.remark: str | None = None
        """Why there is no report of the last run, where that is known."""
        self._reports: deque[tuple[tuple | None, Report, int]] = deque()

    @property
    def report(self) -> Report | None:
        """The last run's report."""
        return self._reports[-1][1] if self._reports else None

    def add(self, report: Report, samples) -> None:
        """Keeps the report of a run that gave `samples`, and drops the oldest ones beyond the limit."""
        size, self.remark = _size(report), None
        self._reports.append((_fingerprint(samples), report, size))
        self._size += size
        while self._size > self._limit and len(self._reports) > 1:
            self._size -= self._reports.popleft()[2]

    def report_of(self, samples) -> tuple[Report | None, bool]:
        """The report of the run that gave `samples` and True, or that of the last run and False when none
        gave them as they are."""
        mark = _fingerprint(samples)
        found = next(
            (report for own, report, _ in reversed(self._reports) if own is not None and own == mark), None
        )
        return (self.report, mark is None) if found is None else (found, True)


def _size(report: Report) -> int:
    """About the bytes that a report takes in memory."""
    return 4096 + RECORD_BYTES * len(report.records) + 2 * sum(map(len, report.messages))


def _fingerprint(samples) -> tuple | None:
    """Size and a few values of a latent, which tell the latents of one model apart without keeping them; None
    where it has none.

    Values count as float16 has them, which ComfyUI may round a result to. Video with sound counts as the one
    row that was sampled."""
    if getattr(samples, "is_nested", False) and not isinstance(samples, torch.Tensor):
        samples = torch.cat([part.flatten(1) for part in samples.unbind()], 1)
    if not isinstance(samples, torch.Tensor) or not samples.numel():
        return None
    flat = samples.detach().reshape(-1)
    return flat.numel(), tuple(map(str, flat[:: max(1, flat.numel() // 16)].half().tolist()))


def nothing_sampled(settings: CacheConfig) -> Report:
    """The report of a sampler that had no step to run."""
    return Report(method=settings.method, predictor=settings.predictor.name, selector=settings.selector.score)


def no_report(sentence: str) -> Report:
    """The report of no run, and why there is none."""
    return Report(method="none", messages=[sentence])
