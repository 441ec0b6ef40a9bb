"""The demo and the bench: captions, sampler, weights, judge, and their commands from end to end on tiny
pictures."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import demo.run as demo_run
from bench import quality
from cache_core.recipes import from_preset
from cache_core.report.metrics import psnr
from cache_core.report.run_report import Report, StepRecord
from demo import plots, scenes
from demo.judge import Judge, labels_of, read_right
from demo.run import (
    SCENES,
    Options,
    decode,
    equal_time_steps,
    finite,
    machine,
    run_demo,
    sample_all,
    text_table,
)
from demo.sampler import noise_for, sample, schedule_sigmas
from demo.scenes import Scene, Thing, caption_of, draw_scene, encode_caption, random_scene, read_caption
from demo.weights import (
    JUDGE,
    MODEL,
    VAE,
    WEIGHTS,
    load_autoencoder,
    load_judge,
    load_transformer,
    save_weights,
)
from tests.tiny_flux import BLUE, RED, SIZE, random_flux

PNG = b"\x89PNG\r\n\x1a\n"
PAIR = Scene(
    (Thing("small", "orange", "triangle", "left"), Thing("medium", "cyan", "diamond", "right")),
    "plain",
    "black",
)
TINY = Options(scenes=(SCENES[0], PAIR), steps=12, size=SIZE, batch=1)


@pytest.fixture(scope="module")
def model():
    return random_flux()


@pytest.fixture(scope="module")
def autoencoder():
    return load_autoencoder()


@pytest.fixture(scope="module")
def judge():
    return load_judge()


def drawn(some, size=scenes.SIZE):
    return torch.from_numpy(np.stack([draw_scene(s, size) for s in some])).permute(0, 3, 1, 2).float()


def random_scenes(count, seed=5):
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


# --- captions -------------------------------------------------------------------------------------


def test_caption_of_a_scene():
    assert (
        caption_of(PAIR)
        == "a small orange triangle left and a medium cyan diamond right on a plain black background"
    )


def test_every_caption_is_read_word_for_word():
    for scene in [*SCENES, *random_scenes(40)]:
        words = [
            (w, i) for i, t in enumerate(scene.things) for w in (t.size, t.colour, t.shape, *t.place.split())
        ]
        assert read_caption(caption_of(scene)) == [*words, (scene.texture, 2), (scene.colour, 2)]


def test_encoding_is_one_word_and_one_phrase_per_token():
    tokens, pooled = encode_caption("a grey circle, a red star on white")
    assert tokens.shape == (scenes.TOKENS, scenes.TOKEN_DIM) and pooled.shape == (scenes.POOLED_DIM,)
    words = (("gray", 0), ("circle", 0), ("red", 1), ("star", 1), ("white", 2))
    at = [(scenes.WORDS.index(w), len(scenes.WORDS) + phrase) for w, phrase in words]
    assert tokens.nonzero().tolist() == [[i, k] for i, pair in enumerate(at) for k in pair]
    assert sorted(pooled.nonzero().flatten().tolist()) == sorted(
        (k - len(scenes.WORDS)) * len(scenes.WORDS) + w for w, k in at
    )


def test_places_of_two_objects_are_told_apart():
    one, other = (
        encode_caption(f"a red star {a} and a blue ring {b}")
        for a, b in (("left", "right"), ("right", "left"))
    )
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


def test_the_empty_caption_is_zero():
    assert all(not t.any() for t in encode_caption(""))


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red elephant", "word 'elephant'"),
        ("a red star and a blue ring and a green heart", "at most two objects"),
        ("red " * 13, "13 words"),
    ],
)
def test_captions_that_cannot_be_drawn(caption, message):
    with pytest.raises(ValueError, match=message):
        encode_caption(caption)


def test_a_drawn_scene_has_its_colours_where_the_caption_says():
    picture = draw_scene(PAIR)
    assert picture.shape == (256, 256, 3)
    for x, colour in (
        (64, scenes.COLOURS["orange"]),
        (192, scenes.COLOURS["cyan"]),
        (128, scenes.BACKGROUNDS["black"]),
    ):
        assert picture[128, x] == pytest.approx(colour, abs=1e-5)


# --- sampler --------------------------------------------------------------------------------------


class Field(torch.nn.Module):
    """A stand-in for the model: velocity `slope` x plus the sum of the text tokens."""

    def __init__(self, slope=0.0):
        super().__init__()
        self.slope, self.calls = slope, []

    def forward(self, x, timestep, context, y):
        self.calls.append((len(x), float(timestep[0])))
        return self.slope * x + context.sum((1, 2))[:, None, None, None]


def test_sigmas():
    assert schedule_sigmas(4) == [1, 0.75, 0.5, 0.25, 0]
    with pytest.raises(ValueError, match="steps"):
        schedule_sigmas(0)


def test_noise_of_a_batch_is_that_of_its_pictures():
    both = noise_for([3, 8], SIZE)
    assert both.shape == (2, 16, 8, 8)
    assert torch.equal(both, torch.cat([noise_for([3], SIZE), noise_for([8], SIZE)])) and not torch.equal(
        both[0], both[1]
    )


def test_euler_and_heun_follow_their_formulas():
    x = noise_for([0], SIZE)
    h = 1 / 5
    euler, heun = (
        sample(Field(1.0), [""], steps=5, guidance=1, sampler=s, size=SIZE) for s in ("euler", "heun")
    )
    assert torch.allclose(euler.latents, x * (1 - h) ** 5, atol=1e-6)
    # The last step of Heun, to sigma 0, is one of Euler.
    assert torch.allclose(heun.latents, x * (1 - h + h * h / 2) ** 4 * (1 - h), atol=1e-6)
    assert (euler.calls, heun.calls) == (5, 9)


def test_guidance_goes_from_the_empty_caption_through_the_caption():
    words = len(read_caption(RED)) * 2  # each word sets two entries of its token
    for split, calls in ((False, 3), (True, 6)):
        field = Field()
        out = sample(field, [RED], steps=3, guidance=2.5, split=split, size=SIZE)
        assert torch.allclose(out.latents, noise_for([0], SIZE) - 2.5 * words, atol=1e-4)
        assert out.calls == len(field.calls) == calls


def test_model_sees_the_sigmas_of_the_sampler():
    field = Field()
    sample(field, [RED, BLUE], steps=2, guidance=1, sampler="heun", size=SIZE)
    assert field.calls == [(2, 1.0), (2, 0.5), (2, 0.5)]


def test_own_sigmas_and_progress():
    field, seen = Field(), []
    sample(
        field,
        [RED],
        guidance=1,
        sigmas=[1.0, 0.4, 0.0],
        size=SIZE,
        progress=lambda items: seen.extend(items) or items,
    )
    assert seen == [(1.0, 0.4), (0.4, 0.0)] and [s for _, s in field.calls] == pytest.approx([1.0, 0.4])


def test_unknown_sampler_is_named():
    with pytest.raises(ValueError, match="sampler must be one of euler, heun"):
        sample(Field(), [RED], sampler="ddim")


def test_captions_and_seeds_change_the_picture(model):
    base, text, seed = (
        sample(model, [c], seeds=[s], steps=2, size=SIZE).latents for c, s in ((RED, 0), (BLUE, 0), (RED, 1))
    )
    assert not torch.allclose(base, text) and not torch.allclose(base, seed)


# --- weights --------------------------------------------------------------------------------------


def test_embedded_files_are_small_enough():
    assert sum((WEIGHTS / name).stat().st_size for name in (MODEL, VAE, JUDGE)) <= 30e6


def test_embedded_transformer_loads_and_runs():
    net = load_transformer()
    assert not net.training and all(
        p.dtype == torch.float32 and not p.requires_grad for p in net.parameters()
    )
    assert net.config.hidden % 128 == 0 and len(net.double_blocks) >= 3 and len(net.single_blocks) >= 6
    one, other = (sample(net, [c], steps=1, guidance=1, size=SIZE).latents for c in (RED, BLUE))
    assert torch.isfinite(one).all() and not torch.allclose(one, other)


def test_embedded_autoencoder_gives_pictures_back(autoencoder):
    pictures = drawn(SCENES[:2], 128)
    with torch.no_grad():
        latents = autoencoder.encode(pictures)
        again = autoencoder.decode(latents)
    assert latents.shape == (2, 16, 16, 16)
    assert again.min() >= 0 and again.max() <= 1
    assert min(psnr(again, pictures)) > 20


def test_weights_come_back_as_they_were_saved(tmp_path, autoencoder, judge):
    net = load_transformer()
    save_weights(tmp_path, net.state_dict(), autoencoder.state_dict(), judge.state_dict())
    for saved, again in (
        (net, load_transformer(tmp_path)),
        (autoencoder, load_autoencoder(tmp_path)),
        (judge, load_judge(tmp_path)),
    ):
        state = again.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in saved.state_dict().items())


def test_missing_weights_say_what_makes_them(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"dual_cache_demo.safetensors is missing; `python -m demo.train`"
    ):
        load_transformer(tmp_path)


# --- judge ----------------------------------------------------------------------------------------


def test_labels_stand_at_their_places():
    shape, colour = labels_of(PAIR)
    assert shape.tolist() == [
        [0, 0, 0],
        [scenes.SHAPES.index("triangle") + 1, 0, scenes.SHAPES.index("diamond") + 1],
        [0, 0, 0],
    ]
    names = list(scenes.COLOURS)
    assert colour.tolist() == [[0, 0, 0], [names.index("orange") + 1, 0, names.index("cyan") + 1], [0, 0, 0]]


def test_every_object_must_be_right_in_shape_and_colour():
    def told(scene):
        return tuple(torch.nn.functional.one_hot(v, 9).permute(2, 0, 1).float() for v in labels_of(scene))

    def altered(**change):
        first, second = PAIR.things
        return Scene((first, Thing(**{**vars(second), **change})), PAIR.texture, PAIR.colour)

    seen = [
        PAIR,
        altered(shape="star"),
        altered(colour="red"),
        altered(place="top right"),
        altered(size="large"),
    ]

    def answer(pictures):
        return tuple(torch.stack(v) for v in zip(*(told(s) for s in seen)))

    assert read_right(answer, torch.zeros(len(seen), 3, 8, 8), [PAIR] * len(seen)) == [
        True,
        False,
        False,
        False,
        True,
    ]


def test_embedded_judge_reads_drawn_pictures(judge):
    some = random_scenes(32, seed=9)
    assert sum(read_right(judge, drawn(some), some)) >= 28
    assert sum(read_right(judge, drawn(some), some[1:] + some[:1])) <= 4


def test_judge_takes_pictures_of_any_size():
    a, b = Judge().eval()(torch.zeros(1, 3, 64, 64))
    assert a.shape == b.shape == (1, 9, 3, 3)


# --- demo command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "seconds", "cached", "wanted"),
    [(30, 10, 5, 15), (5, 10, 3, 2), (5, 10, 5, 3), (30, 10, 0.01, 1), (4, 1, 2, 8)],
)
def test_plain_steps_in_equal_time_round_half_up(steps, seconds, cached, wanted):
    assert equal_time_steps(steps, seconds, cached) == wanted


@pytest.mark.parametrize("times", [(0, 1), (1, 0), (math.nan, 1)])
def test_equal_time_needs_times(times):
    with pytest.raises(ValueError, match="must be above 0"):
        equal_time_steps(30, *times)


def test_scenes_of_the_demo():
    assert len({caption_of(s) for s in SCENES}) == 8 and {len(s.things) for s in SCENES} == {1, 2}


def test_finite():
    assert finite([math.inf, 3.0], min) == 3.0 and finite([math.inf], min) is None


def test_text_table():
    assert text_table(("", "n"), [("a", "10"), ("long", "2")]) == "       n\na     10\nlong   2"


def test_machine_tells_what_numbers_depend_on():
    told = machine()
    assert told["cpu"] and told["torch"] == torch.__version__ and told["threads"] == torch.get_num_threads()


def test_decoding_in_parts_is_decoding(autoencoder):
    latents = noise_for([0, 1, 2], SIZE)
    whole = decode(autoencoder, latents, batch=3)
    assert whole.shape == (3, 3, SIZE, SIZE)
    assert torch.allclose(decode(autoencoder, latents, batch=2), whole, atol=1e-5)
    assert torch.allclose(autoencoder.decode(latents), whole, atol=1e-5)


@pytest.fixture
def clock(monkeypatch):
    """Lets a run take as many seconds as it makes full calls, so that no test depends on the machine."""

    def timed(model, captions, seeds, **options):
        out = sample(model, captions, seeds=seeds, **options)
        return out, float(out.report.totals()["full_calls"] if out.report else out.calls)

    monkeypatch.setattr(demo_run, "timed_sample", timed)
    monkeypatch.setattr(quality, "timed_sample", timed)


def test_runs_of_the_demo(model, clock):
    runs = sample_all(model, TINY, quiet=True)
    fulls = [
        len(demo_run.settings_of(p, 12).schedule_for(12).full_steps) for p in ("duca", "balanced", "planned")
    ]
    assert [r.name for r in runs[:4]] == ["uncached", "duca", "balanced", "planned"] and [
        r.full_calls for r in runs[1:4]
    ] == fulls
    assert fulls[2] == 4 and runs[3].reports[0].predictor == "table"
    assert [r.steps for r in runs[4:]] == list(dict.fromkeys(fulls))
    assert runs[4].name.startswith(f"{fulls[0]} plain steps (time of duca")
    assert all(r.latents.shape == (2, 16, 8, 8) and torch.isfinite(r.latents).all() for r in runs)
    plain = torch.cat(
        [sample(model, [c], seeds=[i], steps=12, size=SIZE).latents for i, c in enumerate(TINY.captions)]
    )
    assert torch.equal(runs[0].latents, plain)
    assert runs[0].seconds == 24 and len(runs[1].reports) == 2


def test_presets_of_equal_time_share_their_rival(model, clock):
    runs = sample_all(
        model,
        Options(scenes=TINY.scenes, steps=6, size=SIZE, batch=2, presets=("duca", "duca + forecast")),
        quiet=True,
    )
    assert [r.name for r in runs][3:] == [
        f"{runs[1].full_calls} plain steps (time of duca and duca + forecast)"
    ]


def test_demo_from_end_to_end(tmp_path, capsys):
    rows = run_demo(tmp_path / "new", TINY, quiet=True)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "grid.png",
        "schedule.png",
        "table.json",
        "table.txt",
    ]
    for name in ("grid.png", "schedule.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(PNG)
    text = (tmp_path / "new" / "table.txt").read_text(encoding="utf-8")
    assert all(row.name in text for row in rows)
    data = json.loads((tmp_path / "new" / "table.json").read_text(encoding="utf-8"))
    assert data["kind"] == "demo" and data["settings"]["captions"] == TINY.captions
    assert [r["name"] for r in data["rows"]] == [r.name for r in rows] and data["rows"][0]["speedup"] == 1
    assert data["rows"][0]["psnr_median"] is None
    for row in rows[1:3]:
        assert (
            math.isfinite(row.psnr_median)
            and row.psnr_worst <= row.psnr_median
            and row.full_calls < TINY.steps
        )
        reports = [Report.from_dict(r) for r in data["reports"][row.name]]
        assert (
            len(reports) == TINY.batches
            and reports[0].schedule == from_preset(row.name).schedule_for(TINY.steps).to_dict()
        )


# --- plots ----------------------------------------------------------------------------------------


def test_plots_refuse_what_they_cannot_draw(tmp_path):
    with pytest.raises(ValueError, match="reports must hold"):
        plots.schedule_plot({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="rows must hold at least one run"):
        plots.quality_curves([{"psnr_median": None}], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"rows\['a'\] must hold one picture per caption: 2"):
        plots.picture_grid({"a": torch.zeros(1, 3, 8, 8)}, ["one", "two"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="must not be empty"):
        plots.picture_grid({}, ["one"], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


# --- bench ----------------------------------------------------------------------------------------


def test_default_bench_holds_what_is_to_be_shown():
    for steps in (50, 30):
        chosen = [c for c in quality.plan([50, 30]) if c.steps == steps]
        assert [c.method for c in chosen].count("uncached") == 1
        for method in ("fora", "toca", "duca", "linear"):
            assert {c.parts["interval"] for c in chosen if c.method == method} >= {3, 4, 5, 7}
        fewer = {c.full_calls for c in chosen if c.method == "fewer"}
        assert fewer >= {
            c.full_calls for c in chosen if c.method in ("fora", "toca", "duca", "linear", "live")
        }
    pairs = {
        (c.method, c.parts["interval"], c.parts["selector"])
        for c in quality.plan([50])
        if c.method in ("toca", "duca")
    }
    assert len(pairs) == 2 * 4 * 3


def test_default_bench_stays_within_its_work():
    # 16 captions at about 30 ms per evaluation on two cores: some twelve minutes.
    assert sum(c.work for c in quality.plan([50, 30])) < 1500


def test_full_bench_gives_every_step_count_the_same_list():
    a, b = ([c.curve for c in quality.plan([50, 30], full=True) if c.steps == steps] for steps in (50, 30))
    assert a == b and {
        c.parts["interval"] for c in quality.plan([50], full=True) if c.method == "linear"
    } == set(range(2, 8))


def test_only_keeps_the_uncached_run():
    assert {c.method for c in quality.plan([50, 30], only=["fora"])} == {"uncached", "fora"}


def test_cost_model_has_the_sizes_of_the_model(model):
    cost = quality.cost_of(model, 256)
    assert (cost.width, cost.image_tokens, cost.text_tokens, cost.double, cost.single) == (128, 256, 12, 2, 2)


def test_bench_measures_every_configuration(model, autoencoder, clock):
    configs = quality.plan([8], quick=True)
    rows = quality.measure(
        model, autoencoder, configs, quality.prompts(3), batch=2, guidance=1.0, size=SIZE, quiet=True
    )
    assert [r["curve"] for r in rows] == [c.curve for c in configs]
    for config, row in zip(configs, rows):
        assert (
            row["full_calls"] == config.full_calls and row["seconds"] == 2 * config.full_calls
        )  # two batches
        assert row["ideal_calls"] == pytest.approx(8 / config.full_calls) and row["speedup"] == pytest.approx(
            row["ideal_calls"]
        )
        assert (
            row["ideal_flops"] < row["ideal_calls"]
            if row["conservative"]
            else row["ideal_flops"] == pytest.approx(row["ideal_calls"])
        )
        if config.method == "uncached":
            assert row["psnr_median"] is None and row["full_calls"] == 8
        else:
            assert (
                row["psnr_worst"] <= row["psnr_median"] < 100 and row["ssim_worst"] <= row["ssim_median"] <= 1
            )
    json.dumps(rows, allow_nan=False)
    assert quality.table_text(rows, []).count("\n") == len(rows) + 1


def test_bench_compares_with_the_uncached_pictures_of_the_same_captions(model, autoencoder, clock):
    same = [c for c in quality.plan([4], only=["fewer"]) if c.method == "uncached"] + [
        quality.Config("fewer", "same steps", 4, 4)
    ]
    row = quality.measure(
        model, autoencoder, same, quality.prompts(3), batch=2, guidance=1.0, size=SIZE, quiet=True
    )[1]
    assert row["psnr_median"] is None and row["psnr_worst"] is None and row["ssim_worst"] == pytest.approx(1)


def test_bench_needs_the_uncached_run(model, autoencoder):
    with pytest.raises(ValueError, match="uncached run for 4 steps"):
        quality.measure(
            model,
            autoencoder,
            [quality.Config("fewer", "", 4, 2)],
            quality.prompts(1),
            1,
            1.0,
            SIZE,
            quiet=True,
        )


def test_realised_over_ideal_alternates(model, monkeypatch):
    order = []

    def timed(model, captions, seeds, *, steps, settings, **options):
        order.append(settings.generator["interval"] if settings else 0)
        report = Report(records=[StepRecord(0, 0, 1.0, "F", "F", milliseconds=500.0)]) if settings else None
        return SimpleNamespace(report=report), 10.0 if settings is None else 5.0

    monkeypatch.setattr(quality, "timed_sample", timed)
    configs = {str(n): quality.cached("fora", "", 9, n) for n in (3, 4, 5)}
    rows = quality.realised(model, configs, 9, 3, SIZE, [RED], quiet=True)
    assert order == [0, 3, 4, 5] * 4  # a warm-up round, then three
    assert [r["full_calls"] for r in rows] == [5, 4, 4] and [r["speedup"] for r in rows] == [2, 2, 2]
    assert rows[0]["step_cost"] == {"F": pytest.approx(0.5 * 9 / 10)}
    assert (
        rows[0]["realised_over_ideal"] == pytest.approx(2 / (9 / 5))
        and rows[0]["cached_seconds"] == [5.0] * 3
    )


def test_bench_command_writes_json_and_picture(tmp_path, monkeypatch, capsys, model):
    monkeypatch.setattr(quality, "load_transformer", lambda: model)
    quality.main(["--quick", "--only", "fora", "linear", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))
    assert {r["method"] for r in data["rows"]} == {"uncached", "fora", "linear"} and {
        r["steps"] for r in data["rows"]
    } == {8, 10}
    assert len(data["realised"]) == 3 and data["machine"]["cpu"] and len(data["model"]["sha256"]) == 64
    assert (tmp_path / "quality.png").read_bytes().startswith(PNG)
    assert "realised over ideal, 10 steps" in capsys.readouterr().out


def test_a_rival_that_took_another_time_is_named():
    def row(name, seconds):
        return demo_run.Row(name, 30, 30, "30/0/0", seconds, 1.0, None, None, 1, 1)

    rows = [
        row("uncached", 10.0),
        row("duca", 5.0),
        row("planned", 5.1),
        row("15 plain steps (time of duca and planned)", 5.5),
    ]
    assert demo_run.scattered(rows) == ""
    assert "read 15 plain steps (time of duca and planned) by calls" in demo_run.scattered(
        [*rows[:3], row(rows[3].name, 7.0)]
    )
