"""Files of learned plans: written and read again, refused in one sentence, and matched to a run."""

import json
import math
from dataclasses import replace

import pytest

from cache_core.config import CacheConfig
from cache_core.learned.features import FEATURES
from cache_core.learned.plans import EXACT, RUN, LearnedPlan, Plans
from cache_core.predictors.build import forecast
from cache_core.recipes import parts_of_plan

SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)
ROW = tuple(0.125 * (i + 1) for i in range(len(FEATURES)))
PLAN = LearnedPlan(RUN, "euler", 2.0, SIGMAS, (0, 2), (ROW, ROW), (40.0, 50.0, 45.0))
IDENTITY = {"model": "Flux 1234", "lora": "none", "area": [256, 1024]}
PLANS = Plans(
    IDENTITY, (PLAN, replace(PLAN, full=(0, 1, 2), weights=(ROW,) * 3), replace(PLAN, aim=EXACT, under=""))
)


def test_a_file_is_read_as_it_was_written(tmp_path):
    PLANS.save(tmp_path / "x.plans.json")
    assert Plans.load(tmp_path / "x.plans.json") == PLANS
    assert (tmp_path / "x.plans.json").stat().st_size / len(PLANS.plans) < 4096
    assert [p.name for p in tmp_path.iterdir()] == ["x.plans.json"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "kind"),
        ('{"kind": "cache_schedule"}', "kind"),
        (PLANS.to_json().replace('"format": 1', '"format": 9'), "another version"),
        (PLANS.to_json().replace("w0-w1", "w0-w9"), "another version"),
        (PLANS.to_json().replace("0.125", "NaN"), "finite|numbers"),
        (PLANS.to_json().replace("0.125", "1e300"), "numbers"),
        (PLANS.to_json().replace('"run"', '"walk"'), "aim must be"),
        (PLANS.to_json().replace('"euler"', '"ddpm"'), "under must be"),
        (PLANS.to_json().replace("[0, 2]", "[0, 9]"), "full must hold"),
        (PLANS.to_json().replace("[256, 1024]", '"big"'), "area"),
        (PLANS.to_json()[:-20], "not valid JSON"),
    ],
)
def test_what_is_no_file_of_plans_gets_one_sentence(tmp_path, text, why):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=f"x.json holds no learned plans: .*({why})"):
        Plans.load(tmp_path / "x.json")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        Plans.load(tmp_path / "x.json")
    with pytest.raises(ValueError, match="not there"):
        Plans.load(tmp_path / "y.json")


def test_a_failed_write_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    PLANS.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Plans(IDENTITY, ()).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("guidance", [1.8, 2.0, 2.2])
def test_guidance_within_a_tenth_is_served(guidance):
    assert PLANS.choose(2, RUN, "euler", guidance, SIGMAS) == PLAN


@pytest.mark.parametrize("guidance", [1.0, 1.79, 2.21, 4.0])
def test_guidance_beyond_a_tenth_is_refused(guidance):
    with pytest.raises(ValueError, match=f"guidance 2 and hold within 10% of it, the run has {guidance:g}"):
        PLANS.choose(2, RUN, "euler", guidance, SIGMAS)


def test_other_runs_are_refused():
    with pytest.raises(
        ValueError, match="under dpmpp_2m; there are: exact under a sampler of its own; run under euler"
    ):
        PLANS.choose(2, RUN, "dpmpp_2m", 2.0, SIGMAS)
    with pytest.raises(ValueError, match="learned at 4 steps and other noise levels"):
        PLANS.choose(2, RUN, "euler", 2.0, (1.0, 0.9, 0.8, 0.7, 0.0))
    assert PLANS.differences({"model": "Flux 1234", "area": 512}) == []
    assert PLANS.differences({"model": "Wan"}) == ["the model is Wan, recorded was Flux 1234"]
    assert (
        "positions" in PLANS.differences({"area": 50})[0]
        and "positions" in PLANS.differences({"area": 3000})[0]
    )


def test_less_denoise_resumes_in_the_plan():
    """The run begins between two full steps, so its first step is full, and nothing older is leaned on."""
    (two, three) = PLANS.fitting(RUN, "euler", 2.0, SIGMAS[1:])
    assert [two.schedule().kinds, three.schedule().kinds] == ["FFA", "FFA"]
    known = dict(zip(FEATURES, two.weights[0])), dict(zip(FEATURES, two.weights[1]))
    assert not any(known[0].values())
    assert known[1]["w0-w1"] == ROW[2] and known[1]["w1-w2"] == known[1]["w2-w3"] == 0
    assert (
        dict(zip(FEATURES, three.weights[0]))["delta"] == ROW[5]
        and not dict(zip(FEATURES, three.weights[0]))["w0-w1"]
    )
    with pytest.raises(ValueError, match="cannot begin at step 4"):
        PLAN.after(4)


def test_the_nearest_number_of_calls_is_chosen():
    assert [PLANS.choose(n, RUN, "euler", 2.0).calls for n in (1, 2, 2.5, 3, 9)] == [2, 2, 3, 3, 3]


def test_files_are_joined_and_newer_plans_replace_older():
    newer = Plans({**IDENTITY, "area": [64, 64]}, (replace(PLAN, expected=(60.0, 61.0)),))
    joined = PLANS.merged(newer)
    assert len(joined.plans) == 3 and joined.identity["area"] == [64, 1024]
    assert joined.choose(2, RUN, "euler", 2.0).quality() == (60.5, 60.0)
    with pytest.raises(ValueError, match="the model is Wan"):
        PLANS.merged(Plans({"model": "Wan"}, ()))


def test_expected_quality_is_that_of_captions_left_out():
    assert PLAN.quality() == (45.0, 40.0)
    assert replace(PLAN, expected=()).quality() is None


def test_a_plan_is_a_schedule_that_brings_its_forecast():
    schedule = PLAN.schedule()
    assert schedule.kinds == "FAFA"
    parts = parts_of_plan(schedule)
    settings = CacheConfig(**parts)
    assert (
        settings.level == "output" and settings.predictor.solved_for and settings.predictor.sigmas == SIGMAS
    )
    assert forecast(json.loads(schedule.forecast)) == settings.predictor
    with pytest.raises(ValueError, match="sampler of its own"):
        PLANS.plans[2].schedule()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sigmas": (1.0, 1.0, 0.5, 0.2, 0.0)}, "fall"),
        ({"full": (1, 2)}, "first of them 0"),
        ({"weights": (ROW,)}, "weights must hold"),
        ({"weights": (ROW, (math.inf,) * len(FEATURES))}, "finite"),
        ({"guidance": math.nan}, "guidance"),
    ],
)
def test_wrong_fields_are_named(change, why):
    with pytest.raises(ValueError, match=why):
        replace(PLAN, **change)
