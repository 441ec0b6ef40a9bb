"""Comparisons of pictures: the numbers, the table and the JSON."""

import json
import math

import pytest
import torch

from cache_core.report import comparison
from cache_core.report.comparison import (
    Comparison,
    Way,
    closeness,
    difference_maps,
    steps_in,
    temporal_difference,
)
from cache_core.report.metrics import psnr, ssim


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(4, 3, 24, 24, generator=generator)
    other = (reference + 0.05 * torch.randn(4, 3, 24, 24, generator=generator)).clamp(0, 1)
    other[2] = reference[2] * 0.5
    return reference, other


def test_closeness_is_median_and_worst_of_the_metrics(frames):
    found = closeness(*frames)
    each, likeness = psnr(*frames), ssim(*frames)
    assert (
        found["worst"] == 2
        and found["psnr_worst"] == min(each)
        and found["ssim_worst"] == pytest.approx(min(likeness))
    )
    assert found["psnr"] == pytest.approx(sum(sorted(each)[1:3]) / 2) and found["ssim"] == pytest.approx(
        sum(sorted(likeness)[1:3]) / 2
    )
    assert found["temporal_difference"] is None and closeness(*frames, clips=1)["temporal_difference"] > 0


def test_equal_pictures_and_pictures_too_small_for_ssim(frames):
    same = closeness(frames[0], frames[0])
    assert same["psnr"] == math.inf and same["ssim"] == pytest.approx(1)
    small = closeness(*(f[..., :8, :8] for f in frames))
    assert small["ssim"] is None and small["ssim_worst"] is None and small["psnr"] > 0


def test_lpips_is_asked_for_a_few_pictures_at_a_time_and_may_be_missing(monkeypatch):
    asked = []

    def distance(a, b):
        asked.append(len(a))
        return (a - b).abs().mean((1, 2, 3)).tolist()

    a = torch.rand(10, 3, 64, 64)
    b = a.clone()
    b[9] = 0
    monkeypatch.setattr(comparison, "lpips", distance)
    found = closeness(a, b)
    assert (
        asked == [8, 2]
        and found["lpips"] == 0
        and found["lpips_worst"] == pytest.approx(a[9].mean().item(), abs=1e-4)
    )
    assert closeness(a[..., :32, :32], b[..., :32, :32])["lpips"] is None
    monkeypatch.setattr(comparison, "lpips", lambda a, b: None)
    assert closeness(a, b)["lpips"] is None


def test_temporal_difference_sees_motion_and_not_brightness(frames):
    reference = frames[0] * 0.5
    assert temporal_difference(reference, reference + 0.25) == pytest.approx(0, abs=1e-6)
    flicker = torch.tensor([0.0, 0.1, 0.0, 0.1]).view(4, 1, 1, 1)
    assert temporal_difference(reference, reference + flicker) == pytest.approx(0.1, abs=1e-6)
    cut = torch.tensor([0.0, 0.0, 0.1, 0.1]).view(4, 1, 1, 1)  # between two videos nothing moves
    assert temporal_difference(reference, reference + cut, clips=2) == pytest.approx(0, abs=1e-6)


def test_maps_share_one_scale_and_equal_pictures_stay_dark(frames):
    reference, other = frames
    maps, scale = difference_maps(reference, [other, reference])
    assert scale == pytest.approx((other - reference).abs().mean(1).max().item())
    assert maps[0].shape == (4, 24, 24) and maps[0].max() == 1 and maps[1].max() == 0
    assert difference_maps(reference, [(reference + 1e-4).clamp(0, 1)])[0][0].max() < 0.01


@pytest.mark.parametrize(
    ("share", "steps", "wanted"), [(0.4, 30, 12), (0.0, 30, 1), (1.7, 30, 30), (0.49, 1, 1)]
)
def test_steps_that_fit(share, steps, wanted):
    assert steps_in(share, steps) == wanted


def test_table_and_json_say_what_is_known(frames):
    ways = [
        Way("uncached", 30, 60, 60, [4.0, 5.0, 9.0]),
        Way("cached", 30, 60, 24, [2.0], closeness(frames[0], frames[0])),
        Way("fewer steps", 12, 24, 24, [2.0], closeness(*frames)),
    ]
    made = Comparison(ways, notes=["A note."], settings={"steps": 30})
    heading, *rows = made.table()
    assert heading == ["", "steps", "calls", "in full", "seconds", "PSNR dB", "SSIM", "worst picture"]
    assert rows[0] == ["uncached", "30", "60", "60", "5.00", "", "", ""]
    assert rows[1][:6] == ["cached", "30", "60", "24", "2.00", "inf"] and rows[2][-1].startswith("3: ")
    data = json.loads(made.to_json())
    assert (
        data["kind"] == "cache_comparison"
        and data["ways"][0]["median_seconds"] == 5
        and data["ways"][0]["seconds"] == [4, 5, 9]
    )
    assert data["ways"][1]["closeness"]["psnr"] == "inf" and data["notes"] == ["A note."]
    finished = Comparison([Way("uncached"), Way("cached", closeness=closeness(*frames, clips=1))], video=True)
    assert finished.table()[0] == ["", "PSNR dB", "SSIM", "worst frame", "temporal"]


def test_the_table_says_which_ways_cannot_be_measured(frames):
    near = closeness(*frames)
    one = Comparison([Way("uncached"), Way("cached", not_finite=[1]), Way("fewer steps", closeness=near)])
    assert one.table()[0] == ["", "PSNR dB", "SSIM", "worst picture"]
    assert [row[1] for row in one.table()[1:]] == ["", "n/a", f"{near['psnr']:.1f}"] and one.table()[2][
        3
    ] == "n/a"
    none = Comparison([Way("uncached", 8, not_finite=[0]), Way("cached", 8)])
    assert none.table() == [["", "steps", "PSNR dB"], ["uncached", "8", ""], ["cached", "8", "n/a"]]
