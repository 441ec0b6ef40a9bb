"""The nodes as ComfyUI sees and runs them: schemas, what each returns, and the sentences they refuse bad
input with."""

import asyncio
import json
import logging
import re
from types import SimpleNamespace

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import pytest
import torch
from PIL import ImageColor

NODES = [
    "CacheScheduleBuilder",
    "DualCache",
    "FeatureForecast",
    "VCacheAttentionPatch",
    "DualCacheSampler",
    "DualCacheRecord",
    "DualCacheFitPlan",
    "DualCacheUseLearnedPlan",
    "DualCacheLearnedSampler",
    "CacheReport",
    "CacheCompare",
    "DualCacheProfileModel",
    "DualCacheProfilePrompts",
    "LoadCacheProfile",
    "PlanCache",
    "ERTACachePlan",
    "DualCacheDemoModel",
    "DualCacheDemoCaption",
    "DualCacheDemoClip",
]
STEPS = 12  # in shorter runs balanced skips nothing
CUSTOM = dict(
    preset="custom",
    steps=10,
    interval=4,
    pattern="conservative, aggressive",
    ratio=0.2,
    warmup=2,
    tail=1,
    start=0.0,
    end=1.0,
)


@pytest.fixture(scope="module")
def nodes(pack):
    """The pack's node classes by their ids, through its entry point."""
    extension = asyncio.run(pack.comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


@pytest.fixture(scope="module")
def call(nodes):
    """`call("DualCache", model=...)`: runs a node as the executor does, on a clone of its class that knows
    its id; gives its outputs."""

    def run(name, **inputs):
        node = nodes[name]
        clone = type(node.__name__, (node,), {"hidden": SimpleNamespace(unique_id="7")})
        return clone.EXECUTE_NORMALIZED(**inputs)

    return run


@pytest.fixture(scope="module")
def core(nodes):
    """`core(name, **inputs)`: runs one of ComfyUI's sampling nodes, written in either dialect; gives its
    outputs as a tuple."""

    def run(name, **inputs):
        node = getattr(custom, name)
        if hasattr(node, "execute"):
            return tuple(node.execute(**inputs).result)
        return tuple(getattr(node(), node.FUNCTION)(**inputs))

    return run


@pytest.fixture
def latent():
    return {"samples": torch.zeros(1, 16, 8, 8)}


@pytest.fixture
def ksampler(condition, latent):
    """`ksampler(model, **changes)`: ComfyUI's KSampler node; gives the LATENT."""
    from nodes import KSampler  # ComfyUI's module

    def run(model, **changes):
        options = dict(
            seed=5,
            steps=STEPS,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            positive=condition(1),
            negative=condition(2),
            latent_image=latent,
            denoise=1.0,
        )
        return KSampler().sample(model, **{**options, **changes})[0]

    return run


@pytest.fixture
def dual_sampler(call, condition, latent):
    """`dual_sampler(model, **changes)`: the Dual Cache Sampler with the settings of `ksampler`; gives the
    LATENT and the report."""

    def run(model, **changes):
        options = dict(
            model=model,
            seed=5,
            steps=STEPS,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            positive=condition(1),
            negative=condition(2),
            latent_image=latent,
            denoise=1.0,
            preset="balanced",
        )
        return call("DualCacheSampler", **{**options, **changes}).result

    return run


# --- schemas ----------------------------------------------------------------------------------------


def test_the_pack_offers_these_nodes(nodes):
    assert sorted(nodes) == sorted(NODES)


@pytest.mark.parametrize("name", NODES)
def test_schemas_load_and_explain_themselves(nodes, name):
    node = nodes[name]
    schema = node.GET_SCHEMA()
    schema.validate()
    info = node.GET_NODE_INFO_V1()
    json.dumps(info)  # what /object_info sends
    assert info["name"] == name and info["display_name"] and info["category"]
    assert len(info["description"]) > 20 and info["description"].endswith(".")
    inputs = {
        k: v for group in ("required", "optional") for k, v in node.INPUT_TYPES().get(group, {}).items()
    }
    for key, (kind, options) in inputs.items():
        assert options.get("tooltip", "").endswith("."), f"{name}.{key} has no tooltip"
        if isinstance(kind, list) or kind == "COMBO":
            choices = kind if isinstance(kind, list) else options["options"]
            assert choices and options.get("default", choices[0]) in choices
        elif "default" in options and "min" in options:
            assert options["min"] <= options["default"] <= options["max"]
    assert len(info["output"]) == len(info["output_name"])
    assert not set(info["output_name"]) & {""}


def test_a_beginner_meets_few_inputs(nodes):
    """Dual Cache shows three, the sampler those of KSampler and two more; the rest is marked advanced."""
    plain = {}
    for name in ("DualCache", "DualCacheSampler"):
        types = nodes[name].INPUT_TYPES()
        inputs = {**types.get("required", {}), **types.get("optional", {})}
        plain[name] = {k for k, (_, options) in inputs.items() if not options.get("advanced")}
        assert plain[name] < set(inputs)
    assert plain["DualCache"] == {"model", "preset", "schedule"}
    from nodes import KSampler

    assert plain["DualCacheSampler"] == set(KSampler.INPUT_TYPES()["required"]) | {"preset", "schedule"}


def test_the_sampler_offers_what_ksampler_offers(nodes):
    def choices(spec):
        return list(spec[0] if isinstance(spec[0], list) else spec[1]["options"])

    inputs = nodes["DualCacheSampler"].INPUT_TYPES()["optional"]
    assert choices(inputs["sampler_name"]) == list(comfy.samplers.KSampler.SAMPLERS)
    assert choices(inputs["scheduler"]) == list(comfy.samplers.KSampler.SCHEDULERS)


# --- Cache Schedule Builder ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, "FFCACFCACF"),
        ({"pattern": "aggressive only"}, "FFAAAFAAAF"),
        ({"pattern": "conservative only"}, "FFCCCFCCCF"),
        ({"pattern": "aggressive, conservative"}, "FFACAFACAF"),
        ({"start": 0.5}, "FFFFFCACFF"),
        ({"end": 0.5}, "FFCACFFFFF"),
        ({"interval": 1}, "FFFFFFFFFF"),
        ({"explicit": "fff cca fcaf"}, "FFFCCAFCAF"),
        ({"preset": "off"}, "FFFFFFFFFF"),
    ],
    ids=str,
)
def test_the_builder_builds_the_plan_its_widgets_describe(call, part, changes, kinds):
    schedule, text = call("CacheScheduleBuilder", **{**CUSTOM, **changes}).result
    assert schedule.kinds == kinds and schedule.steps == 10
    assert part("cache_core.schedule.plan").CacheSchedule.from_json(text) == schedule
    if "C" in kinds and "explicit" not in changes:
        assert {r for r, k in zip(schedule.ratios, kinds) if k == "C"} == {0.2}


def test_the_builder_reads_and_scales_a_schedules_json(call):
    schedule, text = call("CacheScheduleBuilder", **CUSTOM).result
    again, _ = call(
        "CacheScheduleBuilder", **{**CUSTOM, "preset": "off", "explicit": "  " + text + "\n"}
    ).result
    assert again == schedule
    longer, _ = call("CacheScheduleBuilder", **{**CUSTOM, "steps": 20, "explicit": text}).result
    assert longer == schedule.scaled(20) and longer.steps == 20


def test_every_preset_gives_a_plan(call, part):
    for preset in part("cache_core.recipes").preset_names():
        schedule, _ = call("CacheScheduleBuilder", **{**CUSTOM, "preset": preset, "steps": 30}).result
        assert schedule.steps == 30 and ("F" * 30 == schedule.kinds) == (preset == "off")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"explicit": "CFF"}, "F"),
        ({"explicit": "FXF"}, "F, C or A"),
        ({"explicit": "{}"}, "format"),
        ({"explicit": '{"format": 1'}, "JSON"),
        ({"start": 0.7, "end": 0.2}, "start"),
    ],
    ids=str,
)
def test_the_builder_refuses_in_one_sentence(call, changes, word):
    with pytest.raises(ValueError, match=word) as error:
        call("CacheScheduleBuilder", **{**CUSTOM, **changes})
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


# --- Dual Cache, with any sampler node ----------------------------------------------------------------


def test_dual_cache_patches_a_clone(call, flux, ksampler, part):
    (patched,) = call("DualCache", model=flux, preset="balanced").result
    assert patched is not flux and patched.model is flux.model
    assert (
        part("nodes.comfy.requests").request_of(flux) is None
        and part("nodes.comfy.requests").request_of(patched).node_id == "7"
    )
    plain = ksampler(flux)["samples"]
    assert not torch.equal(ksampler(patched)["samples"], plain)
    assert torch.equal(ksampler(flux)["samples"], plain)
    (off,) = call("DualCache", model=flux, preset="off").result
    assert torch.equal(ksampler(off)["samples"], plain)


def test_a_schedule_replaces_the_presets_plan(call, flux, ksampler, ran, report_of):
    schedule, _ = call("CacheScheduleBuilder", **{**CUSTOM, "steps": 8, "explicit": "FFACACAF"}).result
    (patched,) = call("DualCache", model=flux, preset="balanced", schedule=schedule).result
    ksampler(patched, steps=8)
    assert (
        ran(patched) == "FFACACAF"
        and report_of(patched).predictor == "3 rules by token"
        and not report_of(patched).messages
    )
    ksampler(patched, steps=16)
    assert len(ran(patched)) == 16 and "scaled" in report_of(patched).messages[0]


def test_forecast_and_gain_replace_the_presets_own(call, flux, ksampler, report_of):
    results = {}
    for forecast, gain in (
        ("from preset", 0.1),
        ("from preset", 0.9),
        ("reuse", 0.9),
        ("linear", 0.4),
        ("linear", 0.9),
        ("linear", 0.0),
    ):
        (patched,) = call("DualCache", model=flux, preset="balanced", forecast=forecast, gain=gain).result
        results[forecast, gain] = ksampler(patched)["samples"]
        assert report_of(patched).predictor == {"from preset": "3 rules by token"}.get(forecast, forecast)
    assert torch.equal(
        results["from preset", 0.1], results["from preset", 0.9]
    )  # the gain counts where a forecast is chosen
    assert not torch.equal(results["from preset", 0.9], results["linear", 0.9])
    assert not torch.equal(results["linear", 0.4], results["linear", 0.9])
    assert torch.equal(results["linear", 0.0], results["reuse", 0.9])


@pytest.mark.parametrize("guider", ["BasicGuider", "CFGGuider"])
def test_sampler_custom_advanced(call, core, flux, condition, latent, ran, report_of, guider):
    (patched,) = call("DualCache", model=flux, preset="duca").result

    def run(model):
        both = {"positive": condition(1), "negative": condition(2), "cfg": 3.0}
        (guide,) = core(
            guider, model=model, **({"conditioning": condition(1)} if guider == "BasicGuider" else both)
        )
        (noise,), (sampler,) = (
            core("RandomNoise", noise_seed=5),
            core("KSamplerSelect", sampler_name="dpmpp_2m"),
        )
        (sigmas,) = core("BasicScheduler", model=model, scheduler="simple", steps=8, denoise=1.0)
        inputs = dict(noise=noise, guider=guide, sampler=sampler, sigmas=sigmas, latent_image=latent)
        first, second = (core("SamplerCustomAdvanced", **inputs)[0]["samples"] for _ in range(2))
        assert torch.equal(first, second)  # the same guider, as when a graph is queued again
        return first

    plain, cached = run(flux), run(patched)
    assert ran(patched) == report_of(patched).schedule["kinds"] and set(ran(patched)) == set("FCA")
    assert cached.isfinite().all() and not torch.equal(cached, plain)
    (off,) = call("DualCache", model=flux, preset="off").result
    assert torch.equal(run(off), plain)


def test_events_reach_the_browser_per_step_and_at_the_end(call, flux, ksampler, monkeypatch, report_of):
    sent = []
    instance = SimpleNamespace(
        send_sync=lambda *event: sent.append(event), client_id="me", last_prompt_id="run"
    )
    monkeypatch.setitem(
        __import__("sys").modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    )
    (patched,) = call("DualCache", model=flux, preset="balanced").result
    ksampler(patched)
    events = [e for e, _, _ in sent]
    assert events == ["dual_cache.expect"] + ["dual_cache.step"] * STEPS + ["dual_cache.report"]
    assert (
        re.match(r"Caches of about \d.* are expected, of 1 branch\.", sent[0][1]["text"])
        and sent[0][1]["steps"] == STEPS
    )
    assert [d["record"]["step"] for _, d, _ in sent[1:-1]] == list(range(STEPS)) and {
        d["node"] for _, d, _ in sent
    } == {"7"}
    assert {(d["prompt_id"], to) for _, d, to in sent} == {("run", "me")}
    assert (
        sent[-1][1]["report"] == report_of(patched).to_dict()
        and sent[-1][1]["text"] == report_of(patched).text()
    )
    json.dumps([d for _, d, _ in sent], allow_nan=False)


# --- V-Cache Attention Patch --------------------------------------------------------------------------

TOKENS = dict(
    score="value norm, high first",
    ratio=0.4,
    staleness=0.5,
    spatial_bonus=0.3,
    text_ratio=0.2,
    attention="live",
    seed=3,
)


@pytest.mark.parametrize(
    "changes", [{}, {"attention": "frozen"}, {"score": "stratified random"}, {"text_ratio": 0.0}], ids=str
)
def test_the_patches_combine_in_either_order(call, flux, ksampler, ran, report_of, changes):
    dual = {"preset": "duca"}
    tokens = {**TOKENS, **changes}
    (first,) = call(
        "DualCache", model=call("VCacheAttentionPatch", model=flux, **tokens).result[0], **dual
    ).result
    (second,) = call(
        "VCacheAttentionPatch", model=call("DualCache", model=flux, **dual).result[0], **tokens
    ).result
    a, b = ksampler(first)["samples"], ksampler(second)["samples"]
    assert torch.equal(a, b) and ran(first) == ran(second) and "C" in ran(first)
    (alone,) = call("DualCache", model=flux, **dual).result
    assert not torch.equal(a, ksampler(alone)["samples"])
    scores = {"value norm, high first": "value_norm_high", "stratified random": "random"}
    assert report_of(first).selector == report_of(second).selector == scores[tokens["score"]]
    assert {r.ratio for r in report_of(first).records if r.actual == "C"} == {0.4}


def test_each_setting_of_the_patch_matters(call, flux, ksampler):
    base = {**TOKENS, "score": "stratified random", "spatial_bonus": 0.0, "attention": "live"}
    results = []
    for changes in (
        {},
        {"score": "value norm, high first"},
        {"score": "value norm, low first"},
        {"ratio": 0.2},
        {"staleness": 2.0},
        {"spatial_bonus": 2.0},
        {"text_ratio": 1.0},
        {"text_ratio": -1.0},
        {"attention": "frozen"},
        {"seed": 4},
    ):
        model = call("VCacheAttentionPatch", model=flux, **{**base, **changes}).result[0]
        schedule, _ = call("CacheScheduleBuilder", **{**CUSTOM, "steps": 8, "explicit": "FCCCCCCC"}).result
        results.append(
            ksampler(call("DualCache", model=model, preset="duca", schedule=schedule).result[0])["samples"]
        )
    for i, result in enumerate(results):
        assert not any(torch.equal(result, other) for other in results[:i]), i


def test_the_patch_alone_changes_nothing_and_says_what_it_needs(call, flux, ksampler, caplog):
    (patched,) = call("VCacheAttentionPatch", model=flux, **TOKENS).result
    with caplog.at_level(logging.WARNING, "dual_cache"):
        assert torch.equal(ksampler(patched)["samples"], ksampler(flux)["samples"])
    assert caplog.text.count("without a Dual Cache node nothing is cached") == 1


def test_the_patch_serves_the_dual_cache_sampler(call, flux, dual_sampler):
    (patched,) = call("VCacheAttentionPatch", model=flux, **TOKENS).result
    _, report = dual_sampler(patched, preset="duca")
    assert report.selector == "value_norm_high" and {r.ratio for r in report.records if r.actual == "C"} == {
        0.4
    }


# --- Dual Cache Sampler -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"cfg": 3.0}, {"sampler_name": "dpmpp_2m", "scheduler": "karras"}, {"denoise": 0.6}],
    ids=str,
)
def test_the_sampler_is_ksampler_with_the_cache_built_in(
    call, flux, ksampler, dual_sampler, report_of, options
):
    result, report = dual_sampler(flux, **options)
    (patched,) = call("DualCache", model=flux, preset="balanced").result
    assert torch.equal(result["samples"], ksampler(patched, **options)["samples"])
    assert [r.actual for r in report.records] == [r.actual for r in report_of(patched).records]
    assert len(report.records) == STEPS and report.totals()["skipped"] > 0 and report.method == "balanced"
    off, report = dual_sampler(flux, preset="off", **options)
    assert torch.equal(off["samples"], ksampler(flux, **options)["samples"]) and report.why_nothing()


def test_the_sampler_replaces_a_dual_cache_patch_on_its_model(call, flux, dual_sampler):
    (patched,) = call("DualCache", model=flux, preset="fora").result
    again, report = dual_sampler(patched, preset="duca")
    assert report.method == "duca" and torch.equal(
        again["samples"], dual_sampler(flux, preset="duca")[0]["samples"]
    )


def test_the_sampler_keeps_the_rest_of_the_latent(flux, dual_sampler, latent):
    latent["noise_mask"], latent["samples"] = torch.ones(1, 1, 8, 8), torch.randn(1, 16, 8, 8)
    before = latent["samples"].clone()
    result, _ = dual_sampler(flux, latent_image=latent)
    assert torch.equal(latent["samples"], before) and torch.equal(result["noise_mask"], latent["noise_mask"])


def test_nothing_to_sample_still_gives_a_report(call, flux, ksampler, dual_sampler):
    """Denoise 0 gives the latent back; the report says that the model never ran."""
    result, report = dual_sampler(flux, denoise=0.0)
    assert torch.equal(result["samples"], ksampler(flux, denoise=0.0)["samples"])
    assert report is not None and report.records == []
    text = call("CacheReport", report=report)[0]
    assert report.why_nothing() in text and "Raise steps or denoise" in text


# --- Cache Report ---------------------------------------------------------------------------------------


def test_the_report_node_shows_a_report(call, flux, dual_sampler, part):
    _, report = dual_sampler(flux)
    out = call("CacheReport", report=report)
    text, data, plot = out.result
    assert (
        plot.shape[0] == 1 and plot.shape[3] == 3 and 0 <= plot.min() < plot.max() <= 1 and plot.std() > 0.05
    )
    assert text == report.text() and "balanced" in text
    assert (
        part("cache_core.report.run_report").Report.from_json(data).to_dict()
        == report.to_dict()
        == json.loads(data)
    )
    shown = out.ui if isinstance(out.ui, dict) else out.ui.as_dict()
    assert shown["text"] == [text]


def test_the_report_node_finds_the_report_of_a_patched_model(call, flux, ksampler, report_of):
    (patched,) = call("DualCache", model=flux, preset="balanced").result
    latent = ksampler(patched)
    # Through what comes after the patch, too: other nodes clone the model.
    for model in (patched, patched.clone(), call("VCacheAttentionPatch", model=patched, **TOKENS).result[0]):
        text, data, _ = call("CacheReport", model=model, latent=latent).result
        assert text == report_of(patched).text() and json.loads(data)["totals"]["evaluations"] == STEPS


def test_a_model_that_sampled_twice_has_the_report_of_each_latent(call, flux, ksampler):
    """As in a graph with a second pass, where both samplers have run before the first report is asked for."""
    (patched,) = call("DualCache", model=flux, preset="fora").result
    first = ksampler(patched, steps=8)
    second = ksampler(patched, steps=5, latent_image=first, denoise=0.5)
    for latent, steps in ((first, 8), (second, 5)):
        text, data, _ = call("CacheReport", model=patched, latent=latent).result
        assert json.loads(data)["steps"] == steps and text.startswith("fora on FLUX")
    for other in (ksampler(patched, denoise=0.0), {"samples": 0.5 * second["samples"]}):
        text, data, _ = call("CacheReport", model=patched, latent=other).result
        assert json.loads(data)["steps"] == 5 and text.startswith(
            "No run of this model ended with this latent"
        )


def test_the_report_node_says_what_it_needs(call, flux, ksampler, latent, part):
    """It never fails: what was sampled before it must not be lost."""
    (patched,) = call("DualCache", model=flux, preset="balanced").result
    (tokens,) = call("VCacheAttentionPatch", model=flux, **TOKENS).result
    (sampled,) = call("DualCache", model=flux, preset="balanced").result
    ksampler(sampled)
    for inputs, sentence in (
        ({}, "connect a report, or a model"),
        ({"model": flux, "latent": latent}, "Dual Cache has not patched this model"),
        ({"model": tokens, "latent": latent}, "Dual Cache has not patched this model"),
        ({"latent": latent}, "connect a report, or a model"),
        ({"model": patched, "latent": latent}, "no sampler has run this model"),
        ({"model": patched}, "no sampler has run this model"),
        ({"model": sampled}, "connect the latent that this model produced"),
    ):
        out = call("CacheReport", **inputs, save=True)
        text, data, plot = out.result
        assert text.startswith("There is no report to show: ") and sentence in text and text.endswith(".")
        report = part("cache_core.report.run_report").Report.from_json(data)
        assert not report.records and report.messages == [text]
        assert plot.ndim == 4 and plot.std() > 0.01
        assert out.ui["text"] == [text] and out.ui["dual_cache_report"] == [data]


def test_the_plot_draws_kinds_times_errors_and_indicators(part):
    sheets, report = part("nodes.sheets"), part("cache_core.report.run_report")
    records = [
        report.StepRecord(
            i,
            0,
            1 - i / 9,
            "A" if i % 3 else "F",
            "F" if i % 3 == 0 or i == 4 else "A",
            calls=1,
            milliseconds=5.0,
        )
        for i in range(9)
    ]
    plain = sheets.report_plot(report.Report(records, steps=9))
    colours = {ImageColor.getrgb(c) for c in (*(sheets.KIND_COLOURS[k] for k in "FA"), sheets.CHANGED)}
    assert colours <= {colour for _, colour in plain.getcolors(2**20)}
    records[3].forecast_error, records[6].forecast_error, records[7].indicator, records[8].indicator = (
        0.1,
        float("nan"),
        0.9,
        float("inf"),
    )
    more = sheets.report_plot(report.Report(records, steps=9))
    assert more.height > plain.height
    assert {ImageColor.getrgb(c) for c in (sheets.ERROR, sheets.INDICATOR)} <= {
        colour for _, colour in more.getcolors(2**20)
    }
    assert (
        sheets.report_plot(report.Report()).width
        == sheets.report_plot(report.Report(records * 400, steps=9)).width
    )


def test_a_report_is_saved_where_it_belongs(call, flux, dual_sampler, part, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    _, report = dual_sampler(flux)
    for number in (1, 2):
        shown = call("CacheReport", report=report, save=True).ui["text"][0]
        assert shown.endswith(f"Saved as dual_cache/report_{number:05}_.json in the output folder.")
    saved = sorted(tmp_path.rglob("*.json"))
    assert [p.relative_to(tmp_path).as_posix() for p in saved] == [
        "dual_cache/report_00001_.json",
        "dual_cache/report_00002_.json",
    ]
    assert (
        part("cache_core.report.run_report").Report.from_json(saved[1].read_text(encoding="utf-8")).to_dict()
        == report.to_dict()
    )
    call("CacheReport", report=report)
    assert len(list(tmp_path.rglob("*"))) == 3


BAD_NAMES = [
    "",
    "..",
    "../up",
    "a/../../b",
    "/etc/report",
    "C:\\report",
    "CON",
    "x/nul.txt",
    "a\0b",
    "report.",
    "x" * 101,
    "a//b",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_file_name_stays_in_the_output_folder(call, nodes, flux, dual_sampler, tmp_path, monkeypatch, name):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    assert "file_name must be" in nodes["CacheReport"].validate_inputs(save=True, file_name=name)
    assert nodes["CacheReport"].validate_inputs(save=False, file_name=name) is True
    report = dual_sampler(flux)[1]
    out = call("CacheReport", report=report, save=True, file_name=name)  # a name that arrives by a link
    assert out[0] == report.text() and "Not saved: file_name must be" in out.ui["text"][0]
    assert not list(tmp_path.rglob("*.json"))


def test_a_linked_folder_does_not_lead_out_of_the_output_folder(
    call, flux, dual_sampler, tmp_path, monkeypatch
):
    import folder_paths

    (tmp_path / "output").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "output" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    out = call("CacheReport", report=dual_sampler(flux)[1], save=True, file_name="link/report")
    assert "Not saved: file_name leads out" in out.ui["text"][0] and not list(tmp_path.rglob("*.json"))


# --- demo -----------------------------------------------------------------------------------------------


def test_a_demo_caption_is_conditioning(call, part):
    tokens, pooled = part("demo.scenes").encode_caption("a large red heart center")
    (conditioning,) = call("DualCacheDemoCaption", caption="a large red heart center").result
    ((text, extra),) = conditioning
    assert torch.equal(text, tokens[None]) and torch.equal(extra["pooled_output"], pooled[None])
    (empty,) = call("DualCacheDemoCaption", caption="").result
    assert not empty[0][0].any()
    with pytest.raises(ValueError, match="zebra"):
        call("DualCacheDemoCaption", caption="a zebra")
