"""Every sampler of ComfyUI: plain results when off, finite ones when cached, and evaluations counted as they
happened."""

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from cache_core.schedule.sampler_traits import adds_noise, breaks

STEPS = 6
NAMES = comfy.samplers.SAMPLER_NAMES
OPTIONS = {"steps": STEPS, "cfg": 2.0, "scheduler": "simple"}

# From ComfyUI's dpm_fast, dpm_adaptive and deis.
pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:__array_wrap__"),
]


def test_the_list_is_that_of_the_sampler_nodes():
    assert set(comfy.samplers.KSAMPLER_NAMES) <= set(NAMES) == set(comfy.samplers.KSampler.SAMPLERS)
    assert len(NAMES) > 30


@pytest.fixture(scope="module")
def model(build_flux):
    return build_flux()


@pytest.fixture
def watched(model):
    """A clone of the model, and the noise levels of its evaluations as a wrapper of its own sees them."""
    levels, clone = [], model.clone()

    def note(executor, x, timestep, *args, **kwargs):
        levels.append(float(timestep[0]))
        return executor(x, timestep, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", note)
    return clone, levels


@pytest.fixture
def calls(model):
    """How often the blocks were entered, by the last block's own module."""
    count = []
    handle = model.model.diffusion_model.final_layer.register_forward_pre_hook(lambda *_: count.append(1))
    yield count
    handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_off_is_plain_sampling(model, watched, cached, sample, report_of, name):
    clone, levels = watched
    patched = cached(clone, preset="off")
    result = sample(patched, sampler=name, **OPTIONS)
    records = report_of(patched).records
    assert [r.sigma for r in records] == levels and {r.actual for r in records} == {"F"}
    assert torch.equal(result, sample(model, sampler=name, **OPTIONS))


@pytest.mark.parametrize("name", NAMES)
def test_cached_runs_are_finite_and_counted(watched, calls, cached, sample, report_of, shims, name):
    clone, levels = watched
    patched = cached(clone, "FFCAFA", preset="balanced")
    assert sample(patched, sampler=name, **OPTIONS).isfinite().all()
    report = report_of(patched)
    records, totals = report.records, report.totals()
    assert [r.sigma for r in records] == levels and totals["evaluations"] == len(levels) >= STEPS - 1
    # The model ran once more, without its blocks, when the first full step was checked; not where aggressive
    # steps put back the model's output, whose head does not run either.
    ran = totals["full_calls"] if adds_noise(name) and not breaks(name) else totals["calls"]
    checked = 0 if breaks(name) or adds_noise(name) else 1
    assert totals["calls"] == sum(r.calls for r in records) and ran == len(calls) - checked
    assert all(r.calls >= 1 for r in records)
    assert all(r.full_calls == (r.calls if r.actual == "F" else 0) for r in records)
    # Never more skipped than planned: a step runs as planned or in full, and what the plan does not cover
    # runs in full.
    plan = report.schedule["kinds"]
    assert len(plan) == STEPS and all(r.actual in ("F", r.planned) for r in records)
    assert all(r.planned == (plan[r.step] if r.step < STEPS else "F") for r in records)
    stages = max(r.phase for r in records) + 1
    assert (
        totals["skipped"] <= plan.count("A") * stages and totals["conservative"] <= plan.count("C") * stages
    )
    # Going back to a higher noise level is never skipped.
    assert all(
        now.actual == "F" for before, now in zip(records, records[1:]) if now.sigma > before.sigma * 1.01
    )
    assert totals["changed"] == 0 or any(
        r.reason in ("rising", "beyond", "no_snapshot", breaks(name)) for r in records
    )
    assert not shims(clone)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("euler", ""),
        ("dpmpp_2m", ""),
        ("dpmpp_2m_sde", "fresh noise"),
        ("euler_ancestral", "fresh noise"),
        ("euler_cfg_pp", "CFG++"),
        ("euler_ancestral_cfg_pp", "fresh noise"),
    ],
)
def test_samplers_that_stray_further_are_told(model, cached, sample, report_of, name, said):
    for patched, told in ((cached(model, "FFCAFA"), bool(said)), (cached(model, preset="off"), False)):
        sample(patched, sampler=name, **OPTIONS)
        assert any(said in m for m in report_of(patched).messages) == told


@pytest.mark.parametrize("name", [name for name in NAMES if "cfg_pp" in name and "euler" not in name])
def test_samplers_that_make_broken_pictures_of_forecasts_are_left_alone(
    model, cached, sample, report_of, name
):
    patched = cached(model, "FFCAFA")
    assert torch.equal(sample(patched, sampler=name, **OPTIONS), sample(model, sampler=name, **OPTIONS))
    report = report_of(patched)
    assert {r.actual for r in report.records} == {"F"} and f"{name} enlarges" in report.messages[0]
    assert (
        "until the picture breaks" in report.why_nothing()
        and "Choose another sampler" in report.why_nothing()
    )


def test_a_sampler_that_looks_ahead_runs_the_plan_but_where_it_goes_back(model, cached, sample, report_of):
    patched = cached(model, "FAAFAA")
    sample(patched, sampler="heunpp2", **OPTIONS)
    records = report_of(patched).records
    assert [sum(r.step == i for r in records) for i in range(STEPS)] == [3, 3, 3, 3, 2, 1]
    assert all(r.actual == ("F" if r.reason == "rising" else "FAAFAA"[r.step]) for r in records)
    assert sum(r.actual == "A" for r in records) >= 6


FIXED = {"euler": 1, "dpmpp_2m": 1, "uni_pc": 1, "heun": 2, "dpm_2": 2, "dpmpp_sde": 2, "seeds_3": 3}


@pytest.mark.parametrize(("name", "stages"), FIXED.items())
def test_samplers_with_a_fixed_number_of_evaluations_run_the_whole_plan(
    model, cached, sample, report_of, ran, name, stages
):
    """Each evaluation of a step runs as the step does, and each has a cache of its own; the last step may
    need fewer."""
    patched = cached(model, "FFCAFA")
    sample(patched, sampler=name, **OPTIONS)
    report = report_of(patched)
    assert max(r.phase for r in report.records) + 1 == stages
    plan = "FFAAFA" if adds_noise(name) else "FFCAFA"
    assert ran(patched) == "".join(kind * stages for kind in plan)[: len(report.records)]
    assert STEPS * stages - stages < len(report.records) <= STEPS * stages


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_sde", "dpmpp_2m", "uni_pc", "lcm", "er_sde"])
def test_cached_runs_repeat(model, cached, sample, name):
    patched = cached(model, "FFCAFA")
    first = sample(patched, sampler=name, **OPTIONS)
    assert torch.equal(first, sample(patched, sampler=name, **OPTIONS))
    assert not torch.equal(first, sample(model, sampler=name, **OPTIONS))


@pytest.mark.parametrize(
    "name", ["dpm_2", "heun", "dpmpp_sde", "dpmpp_2s_ancestral", "seeds_2", "exp_heun_2_x0", "sa_solver_pece"]
)
def test_live_attention_on_all_tokens_is_exact_with_several_evaluations_per_step(
    model, cached, sample, ran, name
):
    patched = cached(model, "FCCFCC", ratio=1.0, attention="live")
    plain = sample(model, sampler=name, **OPTIONS)
    result = sample(patched, sampler=name, **OPTIONS)
    assert "C" in ran(patched)
    assert float((result - plain).abs().max()) <= 1e-4 * float(plain.abs().max())


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_every_scheduler_runs_the_plan(model, cached, sample, report_of, ran, scheduler):
    patched = cached(model, preset="fora")
    options = {**OPTIONS, "scheduler": scheduler}
    assert sample(patched, **options).isfinite().all()
    report = report_of(patched)
    assert report.steps == len(report.records) and ran(patched) == report.schedule["kinds"]
    assert torch.equal(sample(cached(model, preset="off"), **options), sample(model, **options))


@pytest.mark.parametrize(
    "name", ["euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm", "res_multistep_ancestral"]
)
def test_forecasts_of_the_data_follow_samplers_that_add_noise(name):
    """The embedded model at 12 steps, half of them skipped; forecasts of features end below 26 dB."""
    from stress import embedded

    base = embedded.model()
    plain = embedded.sample(base, sampler=name)
    patched = embedded.cached(base)
    out = embedded.sample(patched, sampler=name)
    report = embedded.report_of(patched)
    assert report.totals()["skipped"] == 6 and any("prediction of the data" in m for m in report.messages)
    error = (out - plain).square().mean()
    assert 10 * torch.log10((plain.max() - plain.min()) ** 2 / error) > 27
