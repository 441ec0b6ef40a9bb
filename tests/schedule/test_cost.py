"""The cost model against FLOPs that papers publish, and the cache's size against counted tensors."""

import pytest

from cache_core.schedule.cost import FLUX_DEV, CostModel, estimated_speedup, peak_bytes
from cache_core.schedule.plan import dual, explicit, full, uniform

# 480 x 640 x 65 frames: 17 x 30 x 40 latent tokens and 256 of text
HUNYUAN_VIDEO = CostModel(width=3072, image_tokens=17 * 30 * 40, text_tokens=256, double=20, single=40)
SMALL = CostModel(width=8, image_tokens=6, text_tokens=2, double=2, single=3)


def test_flux_step():
    assert FLUX_DEV.flops_full() / 1e12 == pytest.approx(74.4, abs=0.05)
    assert 50 * FLUX_DEV.flops_full() / 1e12 == pytest.approx(3719.5, rel=1e-3)  # published for 50 steps
    assert FLUX_DEV.flops_conservative(0.1, "published") / FLUX_DEV.flops_full() == pytest.approx(
        0.058, abs=5e-4
    )


@pytest.mark.parametrize("interval, ours, published", [(5, 3.82, 3.80), (7, 4.90, 4.89), (9, 5.43, 5.39)])
def test_duca_flux_ratio(interval, ours, published):
    speedup = estimated_speedup(dual(50, interval, ratio=0.1, warmup=3), FLUX_DEV, "published")
    assert speedup == pytest.approx(ours, rel=5e-3)
    assert speedup == pytest.approx(published, rel=1e-2)


@pytest.mark.parametrize("interval, ours, published", [(6, 4.06, 4.02), (8, 4.80, 4.74)])
def test_toca_flux_ratio(interval, ours, published):
    speedup = estimated_speedup(dual(50, interval, order="C", ratio=0.1, warmup=3), FLUX_DEV, "published")
    assert speedup == pytest.approx(ours, rel=5e-3)
    assert speedup == pytest.approx(published, rel=1.5e-2)


def test_hunyuan_video():
    assert 50 * HUNYUAN_VIDEO.flops_full() / 1e12 == pytest.approx(29764, abs=1)  # 29 773 published
    attention = 4 * HUNYUAN_VIDEO.tokens * HUNYUAN_VIDEO.width
    assert attention / (24 * HUNYUAN_VIDEO.width**2 + attention) == pytest.approx(0.525, abs=0.005)
    assert HUNYUAN_VIDEO.flops_conservative(0.1, "published") / HUNYUAN_VIDEO.flops_full() == pytest.approx(
        0.034, abs=5e-4
    )
    assert estimated_speedup(dual(50, 5), HUNYUAN_VIDEO, "published") == pytest.approx(4.68, abs=0.005)
    assert estimated_speedup(dual(50, 5, order="C"), HUNYUAN_VIDEO, "published") == pytest.approx(
        4.40, abs=0.005
    )


@pytest.mark.parametrize("interval, expected", [(4, 3.57), (5, 4.17), (6, 5.0), (7, 5.56)])
def test_taylorseer_flux_counts_only_full_steps(interval, expected):
    assert estimated_speedup(uniform(50, interval, warmup=3), FLUX_DEV) == pytest.approx(expected, abs=0.005)


def test_nothing_skipped_is_no_speedup():
    assert estimated_speedup(full(30), FLUX_DEV) == 1.0
    assert peak_bytes(full(30), FLUX_DEV) == 0


def test_built_layout_counts_the_fused_layer():
    """One single block and one row: 14 d^2 for the fused first layer (q, k, v and MLP), 10 d^2 for the
    second; without q, k, v 18 d^2."""
    one = CostModel(width=4, image_tokens=10, text_tokens=0, double=0, single=1)
    assert one.flops_conservative(0.1) == pytest.approx((14 + 10) * 16)
    assert one.flops_conservative(0.1, "published") == pytest.approx((14 + 10 - 6) * 16)
    two_streams = CostModel(width=4, image_tokens=10, text_tokens=0, double=1, single=0)
    assert (
        two_streams.flops_conservative(0.1)
        == two_streams.flops_conservative(0.1, "published")
        == pytest.approx(16 * 16)
    )


def test_live_attention_on_every_row_is_a_full_step():
    assert FLUX_DEV.flops_conservative(1.0, live_attention=True) == FLUX_DEV.flops_full()
    assert FLUX_DEV.flops_conservative(1.0) < FLUX_DEV.flops_full()
    schedule = dual(20, 5, ratio=1.0)
    assert estimated_speedup(schedule, FLUX_DEV, live_attention=True) == pytest.approx(20 / (4 + 8))


def test_ratio_counts_on_conservative_steps_only():
    assert estimated_speedup(explicit("FCA", [0, 0, 1]), SMALL) == 3.0
    assert estimated_speedup(explicit("FCA", [0, 0.5, 1]), SMALL) < 3.0


def test_flux_cache_in_bytes():
    """Module outputs, single-block attention before the second linear layer, corrections of the MLPs, and two
    hidden states."""
    hidden = 4608 * 3072 * 2
    assert peak_bytes(uniform(50, 5), FLUX_DEV) == hidden
    assert peak_bytes(dual(50, 5), FLUX_DEV) - 2 * hidden == pytest.approx(
        (2.15 + 1.08 + 1.61) * 1e9, rel=5e-3
    )


def test_peak_bytes_by_part():
    tensor = 8 * 8 * 2
    blocks = 2 + 3
    assert peak_bytes(explicit("FFFA"), SMALL, snapshots=3) == 3 * tensor
    assert peak_bytes(explicit("FFFC"), SMALL, snapshots=3) == (3 + 1 + 3 * blocks) * tensor
    assert (
        peak_bytes(explicit("FFCA"), SMALL, snapshots=2, module_snapshots=2)
        == (2 + 1 + 2 * 2 * blocks + blocks) * tensor
    )
    assert (
        peak_bytes(explicit("FCA"), SMALL, live_attention=True) == (1 + 1 + 3 * blocks + 2 + blocks) * tensor
    )
    assert peak_bytes(explicit("FCA"), SMALL, bytes_per_value=4, branches=2) == 4 * peak_bytes(
        explicit("FCA"), SMALL
    )


def test_there_are_never_more_snapshots_than_full_steps():
    assert peak_bytes(explicit("FFA"), SMALL, snapshots=100) == peak_bytes(
        explicit("FFA"), SMALL, snapshots=2
    )
    assert peak_bytes(explicit("FCA"), SMALL, module_snapshots=3) == peak_bytes(explicit("FCA"), SMALL)


def test_each_level_keeps_what_it_puts_back():
    tensor, plan = 8 * 8 * 2, explicit("FFA")
    assert peak_bytes(plan, SMALL, level="stack") == peak_bytes(plan, SMALL, level="final") == tensor
    assert peak_bytes(plan, SMALL, level="block") == 5 * tensor
    assert peak_bytes(plan, SMALL, level="module", snapshots=2) == 2 * (2 * 2 + 3) * tensor
    assert peak_bytes(plan, SMALL, level="output") == SMALL.image_tokens * 64 * 2
    assert peak_bytes(explicit("FFCA"), SMALL, level="module", snapshots=2) == (2 * 2 * 5 + 5) * tensor


def test_blocks_that_always_run_cost_their_share():
    assert estimated_speedup(explicit("FAA"), SMALL, aggressive=0.25) == pytest.approx(3 / 1.5)


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: CostModel(0, 4, 1, 1, 1), "width"),
        (lambda: CostModel(8, 0, 1, 1, 1), "image_tokens"),
        (lambda: CostModel(8, 4, -1, 1, 1), "text_tokens"),
        (lambda: CostModel(8, 4, 1, 1.5, 1), "double"),
        (lambda: CostModel(8, 4, 1, 1, True), "single"),
        (lambda: CostModel(8, 4, 1, 0, 0), "double and single"),
        (lambda: SMALL.flops_conservative(1.1), "ratio"),
        (lambda: SMALL.flops_conservative(float("nan")), "ratio"),
        (lambda: SMALL.flops_conservative(0.1, "sliced"), "layout"),
        (lambda: peak_bytes(full(3), SMALL, snapshots=0), "snapshots"),
        (lambda: peak_bytes(full(3), SMALL, branches=1.5), "branches"),
    ],
)
def test_refusals_name_the_field(make, field):
    with pytest.raises(ValueError, match=f"^{field} must "):
        make()
