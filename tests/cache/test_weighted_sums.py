"""Sums in pieces: the same values, no float32 copy of a whole feature, nothing beyond float16's range."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cache_core.base.coordinates import Node
from cache_core.cache import weighted_sums
from cache_core.cache.feature_cache import Evidence, Site
from cache_core.cache.weighted_sums import pieces, weighted_sum
from cache_core.predictors.build import forecast
from cache_core.report.run_recorder import RunRecorder
from cache_core.report.run_report import StepRecord

POOL = [{"name": "reuse"}, {"name": "linear"}, {"name": "newton"}]
TOKENS, WIDTH, PIECE = 4000, 64, 16000  # a piece has 250 tokens


class Largest(TorchDispatchMode):
    """The most float32 values of a tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.dtype == torch.float32 and not t._is_view():
                self.values = max(self.values, t.numel())
        return out


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(weighted_sums, "PIECE", PIECE)


def tensor(seed, dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, TOKENS, WIDTH, generator=g).to(dtype)


def at(step):
    return Node(float(step), 1 - step / 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by", ["number", "sample", "token", "channel"])
def test_pieces_give_what_the_whole_gives(monkeypatch, dtype, by):
    shapes = {"sample": (1, 1, 1), "token": (1, TOKENS, 1), "channel": (1, 1, WIDTH)}
    g = torch.Generator().manual_seed(9)
    weights = (
        [1.5, -0.75, 0.25] if by == "number" else [torch.randn(shapes[by], generator=g) for _ in range(3)]
    )
    snapshots = [tensor(i, dtype) for i in range(3)]
    whole = weighted_sum(snapshots, weights)
    monkeypatch.setattr(weighted_sums, "PIECE", PIECE)
    assert len(list(pieces(snapshots[0]))) == 16
    assert torch.equal(weighted_sum(snapshots, weights), whole)
    out = torch.empty_like(whole)
    assert weighted_sum(snapshots, weights, out) is out and torch.equal(out, whole)


@pytest.mark.parametrize(
    "rule",
    [
        {"name": "newton"},
        {"name": "newton", "adapt": "least_squares"},
        {"by": "token", "pool": POOL},
        {"name": "probe_gain"},
        {"by": "band", "low": POOL[0], "high": POOL[2], "cut": 0.5},
    ],
    ids=str,
)
def test_no_forecast_makes_a_float32_copy_of_a_feature(small, monkeypatch, rule):
    monkeypatch.setattr("cache_core.predictors.grouped.PIECE", PIECE)
    rule, evidence = forecast(rule), Evidence()
    site, given = Site(evidence), [tensor(i) for i in range(4)]
    probes, evidence.grid = [tensor(20 + i) for i in range(5)], (50, 80)
    with Largest() as largest:
        for step in range(4):
            evidence.now = probes[step]
            site.record(given[step], at(step), rule)
            evidence.past.push(evidence.now, at(step), rule.needs)
        evidence.now = probes[4]
        value = site.value(rule, at(4))
    assert value.dtype == torch.bfloat16
    assert 0 < largest.values <= 2 * PIECE < value.numel()


def test_the_error_of_a_forecast_is_measured_on_a_thousand_tokens():
    site, rule, book = Site(Evidence()), forecast({"name": "newton"}), RunRecorder()
    snapshots = [tensor(step) for step in range(3)]
    for step, snapshot in enumerate(snapshots):
        site.record(snapshot, at(step), rule)
    book.records.append(StepRecord(3, 0, 0.7, "F", "F", "planned"))
    truth = tensor(3)
    with Largest() as largest:
        book.note_error(site, truth, rule, at(3))
    assert largest.values <= 1000 * WIDTH
    exact = (site.value(rule, at(3)).float() - truth.float()).norm() / truth.float().norm()
    assert float(book._errors[0]) == pytest.approx(float(exact), rel=0.05)


def test_float16_stays_in_its_range():
    for name in ("linear", "newton"):
        site, rule = Site(), forecast({"name": name})
        for step, value in enumerate((40e3, 50e3, 60e3)):
            site.record(torch.full((1, 4, 8), value, dtype=torch.float16), at(step), rule)
        for signed in (1, -1):
            site.kept = [signed * t.abs() for t in site.kept]
            value = site.value(rule, at(6))
            assert value.isfinite().all() and float(value[0, 0, 0]) == signed * 65504
