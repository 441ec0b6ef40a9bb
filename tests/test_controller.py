"""The caching loop: when it upgrades a planned step, what it keeps per branch, and which steps its history
holds."""

import pytest
import torch
from torch import nn

from cache_core.base.errors import CacheMismatch
from cache_core.base.names import FINAL, LEVELS
from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.predictors.extrapolation import predictor
from cache_core.predictors.grouped import ByChannel
from cache_core.recipes import from_preset
from cache_core.schedule.plan import explicit
from cache_core.selectors.token_selection import Selector
from demo.flux import Flux
from demo.sampler import schedule_sigmas
from tests.tiny_flux import assert_untouched, evaluate, inputs, plain, ran, random_flux, run


@pytest.fixture(scope="module")
def model():
    return random_flux()


# --- mismatches, upgrades, keys -------------------------------------------------------------------


def attempt(cache, model, sigma, data):
    """A call as a host makes it: again in full when the cache does not fit."""
    try:
        kind, out = evaluate(cache, model, sigma, data=data)
        return kind, out, False
    except CacheMismatch:
        with cache.retry(model, tuple(n // 2 for n in data[0].shape[2:])) as kind:
            return kind, plain(model, sigma, data), True


@pytest.mark.parametrize("kind", "AC")
@pytest.mark.parametrize("change", [{"size": 12}, {"text": 9}], ids=str)
def test_what_does_not_fit_is_repeated_in_full(model, kind, change):
    """The host's key did not tell the sizes apart: the result is the plain one and the cache starts
    afresh."""
    cache = Controller(CacheConfig(schedule=explicit("F" + kind * 3, 0.3)), [1.0, 0.8, 0.8, 0.5, 0.0])
    evaluate(cache, model, 1.0)
    data = inputs(model, **change)
    ran_as, out, repeated = attempt(cache, model, 0.8, data)
    assert repeated and ran_as == "F"
    assert_untouched(model)
    assert torch.equal(out, plain(model, 0.8, data))
    # At the same sigma and input the fresh snapshot is exact, which the old one would not be.
    ran_as, out, repeated = attempt(cache, model, 0.8, data)
    assert ran_as == kind and not repeated
    assert torch.allclose(out, plain(model, 0.8, data), atol=1e-5, rtol=0)
    records = cache.finish().records
    assert [(r.actual, r.reason, r.calls, r.full_calls) for r in records[:3]] == [
        ("F", "planned", 1, 1),
        ("F", "mismatch", 1, 1),
        (kind, "planned", 1, 0),
    ]


def test_a_rising_sigma_runs_in_full(model):
    cache = Controller(CacheConfig(schedule=explicit("FAAAA")), [1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    kinds = [evaluate(cache, model, s)[0] for s in (1.0, 0.6, 0.6, 0.75, 0.7)]
    records = cache.finish().records
    assert kinds == list("FAAFA")
    assert (records[3].planned, records[3].actual, records[3].reason) == ("A", "F", "rising")


def test_evaluations_beyond_the_plan_run_in_full(model):
    cache = Controller(CacheConfig(schedule=explicit("FAA")), [1.0, 0.6, 0.3, 0.0])
    kinds = [evaluate(cache, model, s)[0] for s in (1.0, 0.8, 0.6, 0.4, 0.2)]
    records = cache.finish().records
    assert kinds == list("FAAFF")
    assert [(r.planned, r.reason) for r in records[3:]] == [("F", "beyond")] * 2
    assert {r.ratio for r in records[3:]} == {0.0}


def test_heun_counts_phases_and_never_skips_more_than_planned(model):
    result = run(model, CacheConfig(schedule=explicit("FAFAFA")), sampler="heun", guidance=1)
    assert ran(result) == "FFAAFFAAFFA"
    assert [(r.step, r.phase) for r in result.report.records] == [(i // 2, i % 2) for i in range(11)]


def test_phases_do_not_share_their_cache(model, unchecked):
    cache = Controller(CacheConfig(schedule=explicit("FA")), [1.0, 0.5, 0.0], stages=2)
    a, b = inputs(model, seed=1), inputs(model, seed=2)
    seen = []
    handle = model.final_layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    try:
        for sigma, data in ((1.0, a), (0.5, b), (0.5, a), (0.4, b)):
            evaluate(cache, model, sigma, data=data)
    finally:
        handle.remove()
    assert (
        torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3]) and not torch.equal(seen[0], seen[1])
    )


def test_a_branch_without_data_makes_the_whole_call_full(model):
    cache = Controller(CacheConfig(schedule=explicit("FAA")), [1.0, 0.6, 0.3, 0.0])
    evaluate(cache, model, 1.0, ["cond"])
    kind, out = evaluate(cache, model, 0.6, ["uncond", "cond"], inputs(model, batch=2))
    assert kind == "F"
    assert torch.equal(out, plain(model, 0.6, inputs(model, batch=2)))
    assert evaluate(cache, model, 0.3, ["cond"])[0] == "A"
    assert [r.reason for r in cache.finish().records] == ["planned", "no_snapshot", "planned"]


def test_branches_may_be_batched_anew_between_evaluations(model):
    """Free memory decides how many conditionings share a call, so the grouping may change from step to
    step."""
    both = inputs(model, batch=2, seed=4)
    halves = [tuple(t[i : i + 1] for t in both) for i in range(2)]
    settings = CacheConfig(schedule=explicit("FCAC", 0.4), selector=Selector("value_norm_high"))
    together, apart = (Controller(settings, [1.0, 0.8, 0.6, 0.4, 0.0]) for _ in range(2))
    for i, sigma in enumerate((1.0, 0.8, 0.6, 0.4)):
        kind, expected = evaluate(together, model, sigma, ["u", "c"], both)
        if i % 2:
            outs = [
                evaluate(apart, model, sigma, [name], half, begin=name == "u")
                for name, half in zip("uc", halves)
            ]
        else:
            flipped = tuple(t.flip(0) for t in both)
            k, out = evaluate(apart, model, sigma, ["c", "u"], flipped)
            outs = [(k, out[1:]), (k, out[:1])]
        assert {k for k, _ in outs} == {kind}
        assert torch.allclose(torch.cat([o for _, o in outs]), expected, atol=1e-5, rtol=0)
    assert kind == "C"


def test_a_branch_called_twice_in_one_evaluation_keeps_two_caches(model):
    a, b = inputs(model, seed=1), inputs(model, seed=2)
    cache = Controller(CacheConfig(schedule=explicit("FA")), [1.0, 1.0, 0.0])
    exact = [plain(model, 1.0, d) for d in (a, b)]
    for _ in range(2):
        for j, (data, out) in enumerate(zip((a, b), exact)):
            assert torch.equal(evaluate(cache, model, 1.0, data=data, begin=j == 0)[1], out)
    assert [r.actual for r in cache.finish().records] == ["F", "A"]


def test_equal_branches_in_one_call_keep_two_caches(model):
    both = inputs(model, batch=2, seed=6)
    cache = Controller(CacheConfig(schedule=explicit("FA")), [1.0, 1.0, 0.0])
    exact = plain(model, 1.0, both)
    for kind in "FA":
        assert evaluate(cache, model, 1.0, ["same", "same"], both)[0] == kind
        assert torch.allclose(
            evaluate(cache, model, 1.0, ["same", "same"], both, begin=False)[1], exact, atol=1e-5, rtol=0
        )


def test_two_models_in_one_run_keep_two_caches(model):
    """In whatever order they are called."""
    other = random_flux(seed=9)
    cache = Controller(CacheConfig(schedule=explicit("FAA")), [1.0, 1.0, 1.0, 0.0])
    for kind, order in (("F", (model, other)), ("A", (model, other)), ("A", (other, model))):
        for m in order:
            ran_as, out = evaluate(cache, m, 1.0, data=inputs(m), begin=m is order[0])
            assert ran_as == kind and torch.equal(out, plain(m, 1.0, inputs(m)))


class Mystery(nn.Module):
    """A model that the registry does not have."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("level", LEVELS)
@torch.no_grad()
def test_of_an_unknown_model_the_output_alone_is_put_back_with_one_sentence(level):
    mystery, seen = Mystery(), []
    mystery.layers[2].register_forward_hook(lambda *_: seen.append(1))
    cache = Controller(CacheConfig(schedule=explicit("FFAFA"), level=level), schedule_sigmas(5))
    outs = []
    for i, sigma in enumerate(schedule_sigmas(5)[:-1]):
        cache.begin_evaluation(sigma)
        with cache.call(mystery, ["cond"]):
            outs.append(mystery(torch.full((2, 4), i % 3 + 1.0)))
    assert (
        torch.equal(outs[2], outs[1])
        and torch.equal(outs[4], outs[3])
        and not torch.equal(outs[3], outs[1])
        and len(seen) == 3
    )
    report = cache.finish()
    (sentence,) = report.messages
    assert "Mystery" in sentence and "the model's output" in sentence
    assert report.family == "" and report.totals()["skipped"] == 2
    assert not [m for m in mystery.modules() if "forward" in m.__dict__]


def test_a_probe_gives_way_where_there_is_none():
    """A preset that looks at the first block's input, on a model of which nothing but the output is known."""
    mystery, x = Mystery(), torch.ones(2, 4)
    cache = Controller(from_preset("balanced"), schedule_sigmas(15))
    with torch.no_grad():
        for sigma in schedule_sigmas(15)[:-1]:
            cache.begin_evaluation(sigma)
            with cache.call(mystery, ["cond"]):
                assert torch.allclose(mystery(x), Mystery.forward(mystery, x))
    assert cache.finish().totals()["skipped"] > 0


def test_a_refused_call_runs_plainly_with_one_sentence(model):
    cache = Controller(CacheConfig(schedule=explicit("FAA")), schedule_sigmas(3))
    data = inputs(model)
    for sigma in schedule_sigmas(3)[:-1]:
        cache.begin_evaluation(sigma)
        with cache.call(model, ["cond"], refusal="it is Sunday") as kind:
            assert kind == "F" and torch.equal(plain(model, sigma, data), plain(model, sigma, data))
    report = cache.finish()
    assert report.messages == ["FLUX (embedded) is sampled plainly: it is Sunday."]
    assert [r.reason for r in report.records] == [
        "planned",
        "plain",
        "plain",
    ] and "it is Sunday. Take" in report.why_nothing()


# --- history and forecasts ------------------------------------------------------------------------


def test_history_holds_full_steps_only_and_corrections_end_at_the_next_one(model):
    """The mixed-age rule, seen in every site of a run."""
    settings = CacheConfig(
        schedule=explicit("FFCACFC", 0.4), predictor=predictor("linear"), module_predictor=predictor("linear")
    )
    cache = Controller(settings, schedule_sigmas(7))
    full = []
    for i, sigma in enumerate(schedule_sigmas(7)[:-1]):
        kind, _ = evaluate(cache, model, sigma)
        assert kind == settings.schedule.kinds[i]
        full += [i] if kind == "F" else []
        (branch,) = cache._store.values()
        assert len(branch.sites) == 2 * 4 + 2 * 2 + 1
        for name, site in branch.sites.items():
            assert [n.index for n in site.nodes] == [float(f) for f in reversed(full)][:2], name
            assert [n.sigma for n in site.nodes] == [schedule_sigmas(7)[f] for f in reversed(full)][:2], name
            if kind == "F":
                assert site.correction is None, name
        if kind != "F":
            assert branch.sites[FINAL].correction is not None
            corrected = {n for n, s in branch.sites.items() if s.correction is not None}
            assert {n[2] for n in corrected if n != FINAL} == {"img_mlp", "txt_mlp", "out"}
    cache.finish()


def test_aggressive_steps_alone_keep_the_final_state_alone(model):
    cache = Controller(from_preset("fora", explicit("FAAFAA")), schedule_sigmas(6))
    for sigma in schedule_sigmas(6)[:-1]:
        evaluate(cache, model, sigma)
        (branch,) = cache._store.values()
        assert set(branch.sites) == {FINAL} and not branch.kept
    report = cache.finish()
    assert report.peak_bytes == (5 + 16) * 128 * 4


@pytest.fixture
def ages(model, monkeypatch):
    """Runs a plan and gives, per step, the ages that the selector was shown, one tensor per choice."""
    seen, choose = [], Selector.choose

    def spy(self, k, *, age=None, **kw):
        rows = choose(self, k, age=age, **kw)
        seen.append((None if age is None else age.clone(), rows))
        return rows

    monkeypatch.setattr(Selector, "choose", spy)

    def of(kinds):
        settings = CacheConfig(
            schedule=explicit(kinds, 0.3), selector=Selector("value_norm_high", staleness=1.0)
        )
        sigmas, per_step = schedule_sigmas(len(kinds)), []
        cache = Controller(settings, sigmas)
        for sigma in sigmas[:-1]:
            seen.clear()
            evaluate(cache, model, sigma)
            per_step.append(list(seen))
        cache.finish()
        return per_step

    return of


def test_staleness_starts_anew_at_every_full_step(ages, unchecked):
    """A full step computes every token, so no token is older than another right after it."""
    steps = ages("FCCFCC")
    assert [len(s) for s in steps] == [0, 8, 8, 0, 8, 8]
    for i in (1, 4):
        assert all(age is None or bool((age == age[..., :1]).all()) for age, _ in steps[i]), f"step {i}"
    for i in (2, 5):
        assert any(age is not None and bool((age != age[..., :1]).any()) for age, _ in steps[i]), f"step {i}"


def test_staleness_counts_steps_also_those_without_a_choice(ages):
    """Between a token of the full step 0 and one refreshed at step 2 lie two steps, though no tokens were
    chosen at step 1."""
    steps = ages("FACC")
    for (_, rows), (age, _) in zip(steps[2], steps[3]):
        old = torch.ones_like(age, dtype=torch.bool).scatter(1, rows, False)
        assert bool((age[old] - age[~old].max() == 2).all())


class Line(nn.Module):
    """A block whose output lies on a straight line in sigma, whatever goes in."""

    def __init__(self, tokens, dim):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.start, self.slope = (torch.randn(1, tokens, dim, generator=g) for _ in range(2))
        self.calls, self.sigma = 0, None

    def forward(self, x, vec, pe, attn_mask=None, transformer_options=None):
        self.calls += 1
        return self.start + self.sigma * self.slope


class LineFlux(Flux):
    """FLUX around a last block that is linear in sigma; the timestep tells it where it is."""

    def forward(self, x, timestep, *args, **kwargs):
        self.single_blocks[0].sigma = float(timestep[0])
        return super().forward(x, timestep, *args, **kwargs)


def test_the_linear_forecast_is_exact_on_a_straight_line():
    model = random_flux(double=1, single=1, kind=LineFlux)
    model.single_blocks[0] = line = Line(5 + 16, 128)
    sigmas = [1 - (i / 8) ** 1.6 for i in range(9)]
    data = inputs(model)
    errors = {}
    for name, forecast in (
        ("linear", predictor("linear")),
        ("damped", predictor("linear", gain=0.5)),
        ("reuse", predictor("reuse")),
    ):
        line.calls = 0
        cache = Controller(CacheConfig(schedule=explicit("FFAAAFAA"), predictor=forecast), sigmas)
        outs = [evaluate(cache, model, s, data=data)[1] for s in sigmas[:-1]]
        assert line.calls == 3
        report = cache.finish()
        errors[name] = max(float((out - plain(model, s, data)).abs().max()) for out, s in zip(outs, sigmas))
        probed = report.records[5].forecast_error
        assert (probed < 1e-5) == (name == "linear")
    assert errors["linear"] < 1e-4 < 1e-2 < errors["damped"] < errors["reuse"]


# --- settings -------------------------------------------------------------------------------------


def test_done_holds_the_evaluations_that_have_ended(model):
    cache = Controller(from_preset("off"), [1.0, 0.5, 0.0])
    assert cache.done == []
    evaluate(cache, model, 1.0)
    assert cache.done == []
    cache.begin_evaluation(0.5)
    assert [r.step for r in cache.done] == [0]
    cache.finish()


@pytest.mark.parametrize(("field", "value"), [("attention", "hot"), ("ratio", 1.5), ("text_ratio", -0.1)])
def test_bad_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} "):
        CacheConfig(**{field: value})


def test_a_run_needs_two_noise_levels():
    with pytest.raises(ValueError, match="sigmas"):
        Controller(from_preset("off"), [1.0])


def test_curves_are_told_where_the_run_begins_and_ends_in_their_own_coordinate():
    pool = ByChannel((predictor("chebyshev", coordinate="index"), predictor("chebyshev")))
    cache = Controller(CacheConfig(predictor=pool, level="block"), schedule_sigmas(8))
    assert [p.span for p in cache.settings.predictor.pool] == [(0.0, 8.0), (0.0, 1.0)]


def test_conservative_steps_of_an_unknown_model_run_in_full():
    net = nn.Linear(4, 4)
    cache = Controller(CacheConfig(schedule=explicit("FCAF"), level="output"), schedule_sigmas(4))
    kinds = []
    for sigma in schedule_sigmas(4)[:-1]:
        cache.begin_evaluation(sigma)
        with torch.no_grad(), cache.call(net, ["c"]) as kind:
            net(torch.ones(1, 4))
        kinds.append(kind)
    records = cache.finish().records
    assert kinds == list("FFAF") and (records[1].reason, records[1].full_calls) == ("refused", 1)
