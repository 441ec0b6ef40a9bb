"""Selectors choose k distinct tokens, repeatably, row by row, by the score they promise."""

import itertools

import pytest
import torch

from cache_core.selectors.token_selection import SCORES, Selector, count_rows, value_norm


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_values(rows, n, seed=1):
    return torch.rand(rows, n, generator=seeded(seed))


def inputs(selector, rows, n):
    return {"values": some_values(rows, n)} if selector.needs_values else {"generator": seeded(5)}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize(
    ("k", "n"), [(1, 7), (3, 7), (6, 7), (7, 7), (9, 7), (1, 1), (10, 64), (33, 64), (63, 64), (0, 5)]
)
def test_indices_are_ascending_distinct_and_never_too_many(score, stratified, k, n):
    selector = Selector(score, stratified=stratified)
    age = torch.randint(0, 4, (3, n), generator=seeded(2)).float()
    rows = selector.choose(k, n=n, age=age, interval=4, **inputs(selector, 3, n))
    assert rows.dtype == torch.int64
    assert rows.shape == (3, min(k, n))
    assert (rows.diff(dim=1) > 0).all()
    assert ((rows >= 0) & (rows < n)).all()


@pytest.mark.parametrize("score", SCORES)
def test_all_tokens(score):
    selector = Selector(score)
    rows = selector.choose(12, n=12, **inputs(selector, 2, 12))
    assert all(r == list(range(12)) for r in rows.tolist())


@pytest.mark.parametrize(("k", "n"), [(4, 16), (5, 16), (7, 23), (22, 23), (1, 9), (12, 23)])
def test_strata_get_one_token_each(k, n):
    edges = [i * n // k for i in range(k + 1)]
    for seed in range(5):
        rows = Selector("random").choose(k, n=n, generator=seeded(seed))
        assert rows.shape == (1, k)
        assert all(a <= r < b for r, (a, b) in zip(rows[0].tolist(), itertools.pairwise(edges), strict=True))


def test_best_of_each_stratum_is_the_highest_score():
    values = torch.tensor([[1.0, 3, 2, 9, 8, 7, 0, 0, 5]])
    assert Selector("value_norm_high", stratified=True).choose(3, n=9, values=values).tolist() == [[1, 3, 8]]
    assert Selector("value_norm_low", stratified=True).choose(3, n=9, values=values).tolist() == [[0, 5, 6]]


def test_value_norm_signs():
    values = torch.tensor([[0.3, 0.9, 0.1, 0.5], [0.5, 0.1, 0.9, 0.8]])
    assert Selector("value_norm_high").choose(2, n=4, values=values).tolist() == [[1, 3], [2, 3]]
    assert Selector("value_norm_low").choose(2, n=4, values=values).tolist() == [[0, 2], [0, 1]]


def test_random_repeats_with_its_generator_and_leaves_the_global_one_alone():
    selector = Selector("random")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = seeded(3), seeded(3)
    runs = [[selector.choose(8, n=64, generator=g).tolist() for _ in range(4)] for g in (first, second)]
    assert runs[0] == runs[1]
    assert len({str(r) for r in runs[0]}) == 4
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("stratified", [True, False])
def test_random_reaches_every_token_about_equally(stratified):
    generator, hits = seeded(0), torch.zeros(20)
    for _ in range(400):
        hits[Selector("random", stratified=stratified).choose(5, n=20, generator=generator)[0]] += 1
    # 100 expected each, standard deviation 8.7.
    assert hits.min() > 60
    assert hits.max() < 140


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("bonus", [0.0, 0.6])
def test_a_row_does_not_depend_on_the_others(score, stratified, bonus):
    selector = Selector(score, spatial_bonus=bonus, stratified=stratified)
    # Coarse values and ages make ties, which must break alike in any batch.
    values = (some_values(5, 30) * 4).round()
    age = torch.randint(0, 3, (5, 30), generator=seeded(2)).float()

    def choose(rows):
        return selector.choose(
            11, n=30, values=values[rows], age=age[rows], grid=(5, 5), interval=3, generator=seeded(9)
        )

    together = choose(slice(None))
    assert together.shape == (5, 11)
    for i in range(5):
        assert torch.equal(choose(slice(i, i + 1))[0], together[i])
    assert torch.equal(choose([3, 0, 3]), together[[3, 0, 3]])


def test_random_without_ages_is_one_row_for_the_whole_batch():
    assert Selector("random").choose(4, n=16, values=some_values(3, 16), generator=seeded()).shape == (1, 4)


def test_staleness_counts_age_by_interval():
    values = torch.tensor([[0.50, 0.52, 0.51, 0.10]])
    age = torch.tensor([[2.0, 0.0, 0.0, 1.0]])

    def chosen(weight, interval):
        return (
            Selector("value_norm_high", staleness=weight)
            .choose(1, n=4, values=values, age=age, interval=interval)
            .item()
        )

    assert chosen(0.0, None) == 1
    assert chosen(0.25, 4) == 0
    # 0.25 * 2 / 50 = 0.01 is less than the lead of 0.02; 0.25 * 2 / 20 = 0.025 is more.
    assert chosen(0.25, 50) == 1
    assert chosen(0.25, 20) == 0


def test_staleness_brings_every_token_to_its_turn():
    selector, age, values = Selector("value_norm_high", staleness=1.0), torch.zeros(1, 12), some_values(1, 12)
    seen = set()
    for _ in range(12):
        rows = selector.choose(3, n=12, values=values, age=age, interval=1)
        age += 1
        age[0, rows[0]] = 0
        seen |= set(rows[0].tolist())
    assert seen == set(range(12))


def reference_bonus(score, grid, cell, bonus):
    """The spatial bonus, token by token."""
    height, width = grid
    out = list(score)
    for top in range(0, height, cell):
        for left in range(0, width, cell):
            block = [
                y * width + x
                for y in range(top, min(top + cell, height))
                for x in range(left, min(left + cell, width))
            ]
            best = max(block, key=lambda i: score[i])
            out[best] = score[best] + bonus * score[best]
    return out


@pytest.mark.parametrize(
    ("grid", "cell"), [((4, 6), 2), ((5, 5), 2), ((3, 7), 4), ((1, 9), 2), ((6, 4), 1), ((2, 2), 5)]
)
def test_spatial_bonus_lifts_the_best_token_of_each_block(grid, cell):
    n = grid[0] * grid[1] + 3
    k = n // 3
    for seed in range(5):
        values = some_values(2, n, seed)
        selector = Selector("value_norm_high", spatial_bonus=0.7, cell=cell)
        rows = selector.choose(k, n=n, values=values, grid=grid)
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            lifted = reference_bonus(value, grid, cell, 0.7)
            assert row == sorted(sorted(range(n), key=lambda i: -lifted[i])[:k])


def test_spatial_bonus_spreads_the_choice_and_leaves_tokens_behind_the_grid_alone():
    values = torch.tensor([[0.9, 0.8, 0.2, 0.3, 0.8, 0.7, 0.1, 0.6, 0.85]])  # 2 x 4 grid and one more token
    plain = Selector("value_norm_high").choose(3, n=9, values=values)
    spread = Selector("value_norm_high", spatial_bonus=1.0).choose(2, n=9, values=values, grid=(2, 4))
    assert plain.tolist() == [[0, 1, 8]]
    assert spread.tolist() == [[0, 7]]
    without = Selector("value_norm_high", spatial_bonus=1.0).choose(3, n=9, values=values)
    assert torch.equal(plain, without)


def test_spatial_bonus_never_punishes_with_the_low_sign():
    values = torch.tensor([[0.1, 0.9, 0.9, 0.9, 0.2, 0.3, 0.3, 0.3]])
    plain = Selector("value_norm_low").choose(2, n=8, values=values)
    spread = Selector("value_norm_low", spatial_bonus=0.5).choose(2, n=8, values=values, grid=(2, 4))
    assert plain.tolist() == [[0, 4]]
    assert spread.tolist() == [[0, 6]]


def test_value_norm_is_the_mean_over_heads_with_unit_length():
    v = torch.randn(2, 3, 5, 4, generator=seeded(7))
    got = value_norm(v.bfloat16())
    assert got.dtype == torch.float32
    assert got.shape == (2, 5)
    for b in range(2):
        norms = [
            sum(float(v[b, h, t].bfloat16().float().square().sum()) ** 0.5 for h in range(3)) / 3
            for t in range(5)
        ]
        length = sum(x * x for x in norms) ** 0.5
        assert got[b].tolist() == pytest.approx([x / length for x in norms], rel=1e-5)
    assert not value_norm(torch.zeros(1, 2, 3, 4)).any()


def test_count_rows():
    assert [count_rows(r, 100) for r in (0, 0.001, 0.1, 0.29, 0.999, 1)] == [0, 1, 10, 29, 99, 100]
    assert (count_rows(0.5, 0), count_rows(0.1, 512), count_rows(1.0, 1)) == (0, 51, 1)
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            count_rows(ratio, 10)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("score", {"score": "best"}),
        ("staleness", {"staleness": -1}),
        ("spatial_bonus", {"spatial_bonus": float("nan")}),
        ("cell", {"cell": 0}),
        ("cell", {"cell": 2.5}),
    ],
)
def test_settings_are_checked(field, changes):
    with pytest.raises(ValueError, match=field):
        Selector(**changes)


@pytest.mark.parametrize(
    ("field", "selector", "given"),
    [
        ("generator", Selector(), {}),
        ("values", Selector("value_norm_low"), {"generator": seeded()}),
        ("values", Selector("value_norm_low"), {"values": torch.ones(2, 7)}),
        ("age", Selector(), {"generator": seeded(), "age": torch.ones(8), "interval": 3}),
        (
            "age",
            Selector("value_norm_high"),
            {"values": torch.ones(2, 8), "age": torch.ones(3, 8), "interval": 3},
        ),
        ("interval", Selector(), {"generator": seeded(), "age": torch.ones(1, 8)}),
        ("grid", Selector(spatial_bonus=0.5), {"generator": seeded(), "grid": (3, 3)}),
    ],
)
def test_inputs_are_checked(field, selector, given):
    with pytest.raises(ValueError, match=f"^{field}"):
        selector.choose(3, n=8, **given)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("stratified", [True, False])
def test_the_same_choice_on_every_device(score, stratified, device):
    selector = Selector(score, spatial_bonus=0.5, stratified=stratified)
    # Eighths are exact in float32, so both devices score alike to the last bit, with many ties.
    values, age = (
        (some_values(3, 70) * 8).round() / 8,
        torch.randint(0, 3, (3, 70), generator=seeded(2)).float(),
    )

    def choose(device):
        given = {
            "values": values.to(device),
            "age": age.to(device),
            "grid": (8, 8),
            "interval": 4,
            "generator": seeded(9),
        }
        return selector.choose(20, n=70, device=device, **given)

    assert choose(device).device.type == device
    assert torch.equal(choose(device).cpu(), choose("cpu"))
