"""Every recipe inside ComfyUI: through the Feature Forecast node, at each level, on families with settings of
their own."""

import json
from types import SimpleNamespace

import pytest
import torch

from cache_core.base.names import LEVELS
from cache_core.recipes import preset_names  # names only; the modules under test come from the imported pack

STEPS = 9


@pytest.fixture(scope="module")
def feature_forecast(part):
    """`feature_forecast(model, **widgets)`: what the node gives, the patched model and the recipe's text."""
    node = part("nodes.feature_forecast").FeatureForecast

    def run(model, preset="balanced", **widgets):
        clone = type("FeatureForecast", (node,), {"hidden": SimpleNamespace(unique_id=None)})
        return clone.EXECUTE_NORMALIZED(model=model, preset=preset, **widgets).result

    return run


@pytest.fixture(scope="module")
def schedule(part):
    return lambda kinds: part("cache_core.schedule.plan").explicit(kinds, 0.3)


@pytest.mark.parametrize("preset", preset_names())
def test_every_recipe_runs_as_planned_and_repeats_itself(
    preset, flux, feature_forecast, sample, report_of, ran, shims
):
    model, _ = feature_forecast(flux, preset)
    first = sample(model, steps=STEPS, cfg=2.0, batch=2)
    report = report_of(model)
    assert ran(model) == report.schedule["kinds"] and report.family and report.method == preset
    assert torch.isfinite(first).all()
    assert torch.equal(sample(model, steps=STEPS, cfg=2.0, batch=2), first)
    assert shims(flux) == []
    plain = sample(flux, steps=STEPS, cfg=2.0, batch=2)
    assert torch.equal(first, plain) == (set(ran(model)) == {"F"})


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("forecast", ["linear", "newton", "chebyshev"])
def test_full_steps_alone_are_plain_sampling_at_every_level(
    level, forecast, flux, feature_forecast, sample, schedule
):
    model, _ = feature_forecast(flux, forecast=forecast, level=level, schedule=schedule("F" * STEPS))
    assert torch.equal(sample(model, steps=STEPS, cfg=2.0), sample(flux, steps=STEPS, cfg=2.0))


@pytest.mark.parametrize("level", LEVELS)
def test_a_batch_equals_its_pictures_at_every_level(
    level, flux, feature_forecast, sample, schedule, condition
):
    model, _ = feature_forecast(
        flux, forecast="linear", level=level, schedule=schedule("FFFAACAFA"), adapt="least squares"
    )
    both = sample(model, steps=STEPS, batch=2)
    noise = torch.randn(2, 16, 8, 8, generator=torch.manual_seed(0))  # as comfy.sample.prepare_noise draws it
    import comfy.sample

    for i in range(2):
        one = comfy.sample.sample(
            model,
            noise[i : i + 1],
            STEPS,
            1.0,
            "euler",
            "simple",
            condition(1),
            condition(2),
            torch.zeros(1, 16, 8, 8),
            disable_pbar=True,
            seed=0,
        )
        assert torch.allclose(both[i : i + 1], one, atol=2e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_guidance_in_one_call_equals_two_at_every_level(
    level, flux, feature_forecast, sample, schedule, monkeypatch
):
    import comfy.model_base

    model, _ = feature_forecast(flux, forecast="linear", level=level, schedule=schedule("FFFAACAFA"))
    together = sample(model, steps=STEPS, cfg=3.0)
    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", lambda *_, **__: 1 << 60)
    assert torch.allclose(sample(model, steps=STEPS, cfg=3.0), together, atol=2e-4)


def test_the_output_of_an_unknown_model_can_be_cached(
    flux, feature_forecast, sample, report_of, ran, schedule, part, monkeypatch
):
    for module in ("nodes.comfy.requests", "cache_core.hooks.model_binding"):
        monkeypatch.setattr(part(module), "find_family", lambda model: None)
    model, _ = feature_forecast(flux, forecast="linear", level="output", schedule=schedule("FFFAAFAAF"))
    sample(model, steps=STEPS, cfg=2.0)
    assert ran(model) == "FFFAAFAAF"
    assert (
        "Flux is not a model this pack knows; aggressive steps put back the model's output."
        in report_of(model).messages
    )


@pytest.mark.parametrize("coordinate", ["sigma", "index", "log_snr"])
def test_every_coordinate_samples(coordinate, flux, feature_forecast, sample, ran, schedule):
    model, text = feature_forecast(
        flux, forecast="linear", coordinate=coordinate, schedule=schedule("FFFAAFAAF")
    )
    assert torch.isfinite(sample(model, steps=STEPS)).all() and ran(model) == "FFFAAFAAF"
    assert json.loads(text)["predictor"].get("coordinate", "sigma") == coordinate


def test_a_recipe_travels_as_text(flux, feature_forecast, sample):
    made, text = feature_forecast(
        flux, "taylorseer-lite", forecast="foca", gain=0.9, coordinate="index", level="stack"
    )
    read, again = feature_forecast(flux, "off", recipe=text)
    assert json.loads(again) == json.loads(text)
    assert torch.equal(sample(made, steps=STEPS), sample(read, steps=STEPS))
    assert not torch.equal(sample(made, steps=STEPS), sample(flux, steps=STEPS))


def test_families_that_no_row_names_are_told(flux, feature_forecast, sample, report_of, part):
    data = {
        "name": "mine",
        "generator": {"type": "full"},
        "families": {"Flux": {"generator": {"type": "uniform", "interval": 3}}},
    }
    model, _ = feature_forecast(flux, recipe=part("cache_core.recipes").to_json(data))
    sample(model, steps=4)
    assert report_of(model).messages == [
        "Ignored the recipe's settings for model families that this pack does not have: Flux."
    ]


def test_families_have_settings_of_their_own(flux, feature_forecast, sample, ran, part):
    data = {
        "name": "mine",
        "generator": {"type": "full"},
        "families": {"FLUX": {"generator": {"type": "uniform", "interval": 3}}},
    }
    model, _ = feature_forecast(flux, recipe=part("cache_core.recipes").to_json(data))
    sample(model, steps=STEPS)
    assert ran(model) == "FAAFAAFAA"


def test_a_chosen_forecast_wins_over_that_of_a_plan(flux, feature_forecast, sample, report_of, part):
    """The plan's steps count in any case."""
    table = (
        part("cache_core.predictors.solved_weights")
        .SolvedWeights.of(STEPS, {t: {0: 1.0} for t in range(1, STEPS)})
        .to_dict()
    )
    plan = part("cache_core.schedule.plan").CacheSchedule(
        "FAAAFAAAA", (0.1,) * STEPS, "planned", forecast=json.dumps(table)
    )
    for widgets, name in (({}, "table"), ({"forecast": "linear", "level": "module"}, "linear")):
        model, _ = feature_forecast(flux, schedule=plan, **widgets)
        sample(model, steps=STEPS)
        report = report_of(model)
        assert report.predictor == name and report.totals()["full"] == 2


BROKEN = '{"format": 1, "kind": "cache_recipe", "generator": {"type": "full"}, %s}'


@pytest.mark.parametrize(
    ("widgets", "sentence"),
    [
        (
            {"recipe": BROKEN % '"families": {"FLUX": {"ratio": "1"}}'},
            "families.FLUX.ratio must be a number from 0 to 1.",
        ),
        (
            {"recipe": BROKEN % '"families": {"FLUX": {"speedup": []}}'},
            "families.FLUX.speedup must be a number from 1 to 100.",
        ),
        (
            {"recipe": BROKEN % f'"level": "{"A" * 10_000}"'},
            "level must be one of final, output, stack, block, module, not 'AAA",
        ),
        ({"forecast": "reuse", "adapt": "least squares"}, "reuse has no gain to adapt."),
        ({"recipe": "{"}, "recipe is not valid JSON."),
        ({"recipe": "[]"}, 'kind must be "cache_recipe": this is no recipe.'),
        (
            {"recipe": '{"format": 1, "kind": "cache_recipe", "generator": {"type": "full"}, "code": "x"}'},
            "code is not a field of a recipe",
        ),
        (
            {"recipe": '{"format": 9, "kind": "cache_recipe", "generator": {"type": "full"}}'},
            "format must be 1",
        ),
        ({"forecast": "reuse", "order": 3}, "order of predictor reuse must be 0"),
        ({"forecast": "hermite", "coordinate": "sigma"}, "coordinate of predictor hermite must be index"),
        (
            {"forecast": "probe_gain", "level": "module"},
            "predictor probe_gain needs a probe, so level must be final or stack, not module.",
        ),
        (
            {"forecast": "spectrum", "adapt": "back-off"},
            "adapt goes with rules that look at a few snapshots, not with spectrum.",
        ),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_a_sentence(widgets, sentence, flux, feature_forecast):
    with pytest.raises(ValueError, match=".") as error:
        feature_forecast(flux, **widgets)
    assert (
        str(error.value).startswith(sentence) and "\n" not in str(error.value) and len(str(error.value)) < 300
    )


def test_a_mask_computes_what_it_names_and_replays_the_rest(flux, feature_forecast, sample, ran, report_of):
    """Against the plain model whose module outputs are overwritten by those of the step at which the mask
    computed them last."""
    refresh = {
        "*": [0, 5],
        "double.0.attn": [1, 3],
        "double.0.mlp": [2, 3],
        "double.1": [4],
        "single.0": [1, 6],
        "single.1": [7],
    }
    recipe = {
        "format": 1,
        "kind": "cache_recipe",
        "level": "module",
        "mask": {"steps": STEPS, "refresh": refresh},
    }
    model, text = feature_forecast(flux, recipe=json.dumps(recipe))
    masked = sample(model, steps=STEPS, cfg=1.0, batch=2)
    assert ran(model) == "FCCCCFCCA" and json.loads(text)["mask"]["refresh"] == refresh
    assert report_of(model).messages == []
    inner, kept, step = flux.model.diffusion_model, {}, [-1]
    parts = {"attn": ("img_attn.proj", "txt_attn.proj"), "mlp": ("img_mlp", "txt_mlp"), "out": ("linear2",)}

    def overwrite(names):
        def hook(module, args, out):
            if step[0] in {s for name in ("*", *names) for s in refresh.get(name, [])}:
                kept[module] = out.clone()
            return kept[module].clone()

        return hook

    handles = [inner.img_in.register_forward_pre_hook(lambda *_: step.__setitem__(0, step[0] + 1))]
    for kind, blocks in (("double", inner.double_blocks), ("single", inner.single_blocks)):
        for i, block in enumerate(blocks):
            for part in ("attn", "mlp") if kind == "double" else ("out",):
                names = (f"{kind}.{i}", f"{kind}.{i}.{part}")
                handles += [
                    block.get_submodule(path).register_forward_hook(overwrite(names)) for path in parts[part]
                ]
    try:
        wanted = sample(flux, steps=STEPS, cfg=1.0, batch=2)
    finally:
        for handle in handles:
            handle.remove()
    assert torch.allclose(masked, wanted, atol=2e-4)
    assert not torch.allclose(masked, sample(flux, steps=STEPS, cfg=1.0, batch=2), atol=1e-2)
