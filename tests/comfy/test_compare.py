"""Cache Compare on the embedded model: what it samples, counts, measures and refuses."""

import asyncio
import json
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from PIL import Image

STEPS = 12


@pytest.fixture(scope="module")
def call(pack):
    """`call("CacheCompare", ...)`: runs a node as the executor does."""
    extension = asyncio.run(pack.comfy_entrypoint())
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}

    def run(name, **inputs):
        clone = type(name, (nodes[name],), {"hidden": SimpleNamespace(unique_id="7", extra_pnginfo=None)})
        return clone.EXECUTE_NORMALIZED(**inputs)

    return run


@pytest.fixture(scope="module")
def inputs(call):
    """The embedded model with Dual Cache, its VAE, captions and latent, in a size that a test can afford."""
    model, vae = call("DualCacheDemoModel").result
    captions = ("a large red heart center on a plain white background", "")
    positive, negative = (call("DualCacheDemoCaption", caption=caption)[0] for caption in captions)
    return {
        "model": call("DualCache", model=model, preset="balanced")[0],
        "vae": vae,
        "positive": positive,
        "negative": negative,
        "latent_image": {"samples": torch.zeros(1, 16, 16, 16)},
        "steps": STEPS,
        "seed": 3,
    }


@pytest.fixture
def plain(inputs, part):
    """`plain(steps)`: what ComfyUI's own sampler and VAE give without any cache, [B,H,W,3]."""
    from nodes import VAEDecode, common_ksampler

    def run(steps):
        model = inputs["model"].clone()
        model.model_options = {"transformer_options": {}}
        latent = common_ksampler(
            model,
            3,
            steps,
            1.0,
            "euler",
            "simple",
            inputs["positive"],
            inputs["negative"],
            inputs["latent_image"],
        )[0]
        return VAEDecode().decode(inputs["vae"], latent)[0]

    return run


def ways(output):
    return {way["name"]: way for way in json.loads(output[1])["ways"]}


def shown(output):
    return json.loads(output.ui["dual_cache_compare"][0])


def load(files):
    return [Image.open(f"{folder_paths.get_temp_directory()}/{file['filename']}") for file in files]


def test_it_counts_calls_and_gives_the_rival_as_many(call, inputs, plain, part):
    output = call("CacheCompare", **inputs, fewer_from="equal calls")
    found, data = ways(output), json.loads(output[1])
    kinds = part("cache_core.recipes").from_preset("balanced").schedule_for(STEPS).kinds
    assert [w["calls"] for w in found.values()] == [STEPS, STEPS, kinds.count("F")]
    assert [w["full_calls"] for w in found.values()] == [STEPS, kinds.count("F"), kinds.count("F")]
    assert all(len(w["seconds"]) == 1 and w["median_seconds"] > 0 for w in found.values())
    metrics = part("cache_core.report.metrics")
    a, b = (plain(n).movedim(-1, 1).clamp(0, 1) for n in (STEPS, kinds.count("F")))
    assert found["fewer steps"]["closeness"]["psnr"] == pytest.approx(metrics.psnr(a, b)[0], abs=1e-6)
    assert found["fewer steps"]["closeness"]["ssim"] == pytest.approx(metrics.ssim(a, b)[0], abs=1e-6)
    assert found["uncached"]["closeness"] is None and found["cached"]["closeness"]["psnr"] > 15
    assert data["report"]["records"] and data["settings"]["steps"] == STEPS
    assert f"{kinds.count('F')} steps because of the cached run's counted full model calls" in " ".join(
        data["notes"]
    )


def test_what_it_shows_is_what_was_sampled(call, inputs, plain):
    output = call("CacheCompare", **inputs, fewer_from="none")
    files = shown(output)["shown"]
    (uncached,), (cached,) = map(load, files["pictures"])
    wanted = (plain(STEPS)[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    assert (
        torch.frombuffer(bytearray(uncached.tobytes()), dtype=torch.uint8).numpy() == wanted.reshape(-1)
    ).all()
    assert cached.size == uncached.size == (128, 128) and cached.tobytes() != uncached.tobytes()
    ((difference,),) = map(load, files["maps"])
    assert difference.size == uncached.size and len(difference.getcolors(2**16)) > 5
    sheet = output[0]
    assert (
        sheet.shape[0] == 1
        and sheet.shape[3] == 3
        and sheet.min() >= 0
        and sheet.max() <= 1
        and sheet.std() > 0.05
    )
    assert "fewer steps" not in ways(output)


@pytest.mark.parametrize("slow", [1.0, 2.0])
def test_equal_seconds_follow_the_clock(call, inputs, part, monkeypatch, slow):
    """With a clock that each step of the sampler moves by what its kind costs. slow: how much longer the
    uncached run takes than it should, as when another program runs beside it; the rival's own seconds put
    that right."""
    compare, host = part("nodes.compare_sampling"), part("nodes.comfy.samplers")
    now, sample = [0.0], host.sample

    def counted(model, **options):
        latent = sample(model, **options)
        report = part("nodes.comfy.requests").request_of(model).box.report
        step = slow if options["steps"] == STEPS else 1.0
        now[0] += (
            10.0
            if options.get("last_step")
            else sum(
                step if report.method == "off" else 1.0 if r.actual == "F" else 0.25 for r in report.records
            )
        )
        return latent

    monkeypatch.setattr(compare.samplers, "sample", counted)
    monkeypatch.setattr(compare.time, "perf_counter", lambda: now[0])
    output = call("CacheCompare", **inputs, fewer_from="equal seconds", repeats=2)
    found = ways(output)
    full = found["cached"]["full_calls"]
    seconds = full + 0.25 * (STEPS - full)
    assert found["uncached"]["seconds"] == [slow * STEPS] * 2 and found["cached"]["seconds"] == [
        seconds,
        seconds,
    ]
    assert (
        found["fewer steps"]["steps"] == round(seconds)
        and found["fewer steps"]["seconds"] == [round(seconds)] * 2
    )


def test_a_run_that_skips_nothing_says_so_and_has_no_rival(call, inputs):
    model = call("DualCache", model=inputs["model"], preset="off")[0]
    output = call("CacheCompare", **{**inputs, "model": model}, fewer_from="equal calls")
    notes = json.loads(output[1])["notes"]
    assert (
        list(ways(output)) == ["uncached", "cached"] and ways(output)["cached"]["closeness"]["psnr"] == "inf"
    )
    assert any(n.startswith("Nothing was skipped") for n in notes) and any("no rival" in n for n in notes)


def test_a_run_without_steps_shows_no_earlier_run(call, inputs, part):
    model = call("DualCache", model=inputs["model"], preset="balanced")[0]
    call("CacheCompare", **{**inputs, "model": model}, fewer_from="none")
    assert part("nodes.comfy.requests").request_of(model).box.report.records
    output = call("CacheCompare", **{**inputs, "model": model}, fewer_from="none", denoise=0.0)
    assert [(w["calls"], w["full_calls"]) for w in ways(output).values()] == [(0, 0), (0, 0)]
    assert output[2].records == [] and json.loads(output[1])["report"]["records"] == []
    assert any("the sampler had no step to run" in note for note in json.loads(output[1])["notes"])


def test_the_model_is_left_as_it_was(call, inputs, shims, ksampler_of):
    before = ksampler_of(inputs["model"])
    call("CacheCompare", **inputs, fewer_from="none")
    assert not shims(inputs["model"]) and torch.equal(ksampler_of(inputs["model"]), before)


@pytest.fixture
def ksampler_of(inputs):
    from nodes import common_ksampler

    return lambda model: common_ksampler(
        model,
        3,
        STEPS,
        1.0,
        "euler",
        "simple",
        inputs["positive"],
        inputs["negative"],
        inputs["latent_image"],
    )[0]["samples"]


def test_finished_pictures_are_compared_without_sampling(call):
    """The report that goes on to Cache Report is one of no run, not nothing."""
    a = torch.rand(5, 32, 32, 3)
    b = a.clone()
    b[3, :16] = 1 - b[3, :16]
    output = call("CacheCompare", uncached=a, cached=b, batch="video")
    way = ways(output)["cached"]
    assert (
        way["closeness"]["worst"] == 3
        and way["closeness"]["temporal_difference"] > 0.01
        and way["seconds"] == []
    )
    drawn = shown(output)
    assert drawn["video"] and drawn["shown"]["frames"] == [0, 1, 2, 3, 4] and drawn["shown"]["first"] == 3
    assert "worst frame" in drawn["table"][0] and "seconds" not in drawn["table"][0]
    assert not output[2].records and "no step" in output[2].why_nothing()
    pictures = call("CacheCompare", uncached=a, cached=b)
    assert ways(pictures)["cached"]["closeness"]["temporal_difference"] is None


def test_finished_latents_are_decoded(call, inputs, ksampler_of):
    latent = {"samples": ksampler_of(inputs["model"])}
    output = call("CacheCompare", uncached=latent, cached=latent, vae=inputs["vae"])
    assert ways(output)["cached"]["closeness"]["psnr"] == "inf"


def test_pictures_that_are_not_finite_are_named_and_the_rest_is_shown(call, part):
    a = torch.rand(3, 32, 32, 3)
    cached, fewer = a.clone(), (a + 0.05).clamp(0, 1)
    cached[1, :8, :8] = torch.nan
    cached[2, 3, 4] = torch.inf
    output = call("CacheCompare", uncached=a, cached=cached, fewer_steps=fewer)
    found, drawn = ways(output), shown(output)
    assert found["cached"]["closeness"] is None and found["cached"]["not_finite"] == [1, 2]
    metrics = part("cache_core.report.metrics")
    near = sorted(metrics.psnr(a.movedim(-1, 1), fewer.movedim(-1, 1)))[1]
    assert found["fewer steps"]["closeness"]["psnr"] == pytest.approx(near, abs=1e-4)
    column = drawn["table"][0].index("PSNR dB")
    assert [row[column] for row in drawn["table"][1:]] == ["", "n/a", f"{near:.1f}"]
    assert any("2 of 3 pictures of cached hold values that are not finite" in note for note in drawn["notes"])
    assert (
        drawn["shown"]["first"] == 1
        and len(load(drawn["shown"]["pictures"][1])) == len(load(drawn["shown"]["maps"][0])) == 3
    )
    assert load(drawn["shown"]["pictures"][1])[1].getpixel((2, 2)) == (0, 0, 0) and output[0].isfinite().all()
    turned = call("CacheCompare", uncached=cached[1:2], cached=a[1:2])
    assert ways(turned)["cached"]["closeness"] is None
    assert any(
        n.startswith("The picture of uncached holds") and "nothing can be measured" in n
        for n in shown(turned)["notes"]
    )


def test_a_difference_that_is_not_a_number_is_as_bright_as_the_largest(part):
    colours = part("nodes.sheets").heat(torch.tensor([[0.0, torch.nan, 1.0]]))
    assert torch.equal(colours[0, 1], colours[0, 2]) and not torch.equal(colours[0, 1], colours[0, 0])


class Nested:
    """A video with its sound, as ComfyUI's NestedTensor holds it, which the oldest supported version does not
    have."""

    is_nested = True

    def __init__(self, *parts):
        self.parts = list(parts)

    def unbind(self):
        return self.parts


def test_video_with_sound_is_video(call):
    def latent(seed):
        make = torch.Generator().manual_seed(seed)
        return {
            "samples": Nested(
                torch.rand(1, 16, 3, 4, 4, generator=make), torch.rand(1, 8, 12, 16, generator=make)
            )
        }

    def decode(samples):
        video = samples.unbind()[0] if getattr(samples, "is_nested", False) else samples
        return video[:, :3].movedim(1, -1).repeat_interleave(4, 2).repeat_interleave(4, 3)

    output = call("CacheCompare", uncached=latent(1), cached=latent(2), vae=SimpleNamespace(decode=decode))
    assert shown(output)["video"] and shown(output)["shown"]["count"] == 3
    assert ways(output)["cached"]["closeness"]["temporal_difference"] > 0


@pytest.mark.parametrize(("batch", "video"), [("from the latent", True), ("pictures", False)])
def test_latents_with_a_time_axis_are_videos(call, batch, video):
    """Two videos of three frames, whose VAE is a stand-in."""

    def latent(seed):
        return {"samples": torch.rand(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(seed))}

    vae = SimpleNamespace(
        decode=lambda samples: samples[:, :3].movedim(1, -1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    )
    output = call("CacheCompare", uncached=latent(1), cached=latent(2), vae=vae, batch=batch)
    drawn, way = shown(output), ways(output)["cached"]["closeness"]
    assert drawn["video"] is video and drawn["shown"]["count"] == way["count"] == 6
    if video:
        a, b = (latent(seed)["samples"][:, :3].diff(dim=2) for seed in (1, 2))
        assert way["temporal_difference"] == pytest.approx((a - b).abs().mean().item(), abs=1e-6)
    else:
        assert way["temporal_difference"] is None


def test_long_videos_show_some_frames_and_the_worst(call):
    a = torch.rand(40, 16, 16, 3)
    b = a.clone()
    b[17] = 0
    drawn = shown(call("CacheCompare", uncached=a, cached=b, batch="video"))["shown"]
    assert (
        17 in drawn["frames"]
        and {0, 39} < set(drawn["frames"])
        and len(drawn["frames"]) <= 8
        and drawn["frames"][drawn["first"]] == 17
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(model=None), "needs model to sample"),
        (dict(vae=None, positive=None), "needs vae, positive to sample"),
        (dict(cached=torch.rand(1, 16, 16, 3)), "needs both uncached and cached"),
        (
            dict(uncached=torch.rand(1, 16, 16, 3), cached=torch.rand(1, 16, 24, 3)),
            "1 of 24 x 16 pixels, those of uncached 1 of 16 x 16",
        ),
        (
            dict(uncached={"samples": torch.rand(1, 16, 4, 4)}, cached=torch.rand(1, 32, 32, 3), vae=None),
            "needs a vae to decode",
        ),
    ],
)
def test_what_it_cannot_compare_it_says(call, inputs, part, changes, sentence):
    check_told(call("CacheCompare", **{**inputs, **changes}), sentence, part)


def check_told(output, sentence, part):
    """The node shows a sentence, and gives outputs that nodes after it can use."""
    sheet, data, report = output.result
    (told,) = output.ui["text"]
    assert sentence in told and told.endswith(".") and json.loads(data)["message"] == told
    assert sheet.ndim == 4 and sheet.std() > 0.01 and "dual_cache_compare" not in output.ui
    assert part("cache_core.report.run_report").Report.from_json(report.to_json()).records == report.records


def test_a_model_without_dual_cache_is_told(call, inputs, part):
    """As when that node is bypassed."""
    bare = {**inputs, "model": call("DualCacheDemoModel")[0]}
    check_told(call("CacheCompare", **bare), "needs a model that Dual Cache has patched", part)


def test_a_decoder_that_fails_loses_no_run(call, inputs, part):
    """The report of the cached run still goes out; an interrupt still interrupts."""
    import comfy.model_management as management

    class Broken:
        error: Exception = RuntimeError("the decoder is broken")

        def decode(self, samples):
            raise self.error

    output = call("CacheCompare", **{**inputs, "vae": Broken()})
    check_told(output, "the decoder is broken", part)
    assert len(output.result[2].records) == STEPS
    Broken.error = management.InterruptProcessingException()
    with pytest.raises(management.InterruptProcessingException):
        call("CacheCompare", **{**inputs, "vae": Broken()})
