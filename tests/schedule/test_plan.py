"""Schedules: the traces of the official code, windows, scaling, JSON and the fixture shared with
JavaScript."""

import copy
import dataclasses
import json
import pickle

import pytest

from cache_core.base.limits import MAX_STEPS
from cache_core.schedule.generators import GENERATORS
from cache_core.schedule.plan import (
    CacheSchedule,
    dual,
    duca_dit,
    explicit,
    from_generator,
    full,
    growing,
    modulo,
    uniform,
)
from tools import schedule_fixtures as fixtures


def _fca(schedule):
    return tuple(schedule.counts().values())


# Traces of the official code


@pytest.mark.parametrize("interval, cycle", [(3, "FCA"), (4, "FCAC"), (5, "FCACA")])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_duca_pixart(interval, cycle, steps):
    assert dual(steps, interval).kinds == (cycle * steps)[:steps]
    by_remainder = "".join(
        "F" if s % interval == 0 else "C" if s % interval % 2 else "A" for s in range(steps)
    )
    assert dual(steps, interval).kinds == by_remainder


@pytest.mark.parametrize("interval, expected", [(5, (10, 20, 20)), (7, (8, 21, 21)), (9, (6, 22, 22))])
def test_duca_hunyuan_video(interval, expected):
    assert _fca(dual(50, interval, warmup=1)) == expected


def test_duca_hunyuan_video_cycle():
    assert dual(12, 5).kinds == "FCACAFCACAFC"


@pytest.mark.parametrize("interval, expected", [(5, (12, 19, 19)), (7, (9, 21, 20)), (9, (8, 21, 21))])
def test_duca_flux_cycle(interval, expected):
    assert _fca(dual(50, interval, ratio=0.1, warmup=3)) == expected


def test_duca_flux_begins_with_three_full_steps():
    assert dual(50, 5, warmup=3).kinds == "FFF" + "CACAF" * 9 + "CA"


def test_duca_open_sora_attention_and_mlp():
    """Table of period 3 after three full steps; step 3 is full by the table, so that four full steps stand in
    front."""
    assert dual(30, 3, warmup=4).kinds == "FFF" + "FCA" * 9


def test_duca_open_sora_cross_attention():
    schedule = explicit("FFF CCA FCA CCA FCA CCA FCA CCA FCA CCA")
    assert schedule.kinds == "FFF" + "".join("FCACCA"[s % 6] for s in range(3, 30))
    assert schedule.generator is None


def test_toca_flux():
    assert dual(12, 4, order="C", warmup=3).kinds == "FFFCCCFCCCFC"
    assert _fca(dual(50, 6, order="C", warmup=3)) == (10, 40, 0)
    assert _fca(dual(50, 8, order="C", warmup=3)) == (8, 42, 0)


def test_fora():
    assert uniform(8, 3).kinds == "FAAFAAFA"
    assert uniform(50, 3).kinds == dual(50, 3, order="A").kinds


@pytest.mark.parametrize("interval, expected", [(3, 18), (4, 14), (5, 12), (6, 10), (7, 9)])
def test_taylorseer_flux(interval, expected):
    schedule = uniform(50, interval, warmup=3)
    assert _fca(schedule) == (expected, 0, 50 - expected)
    assert schedule.full_steps == (0, 1, 2, *range(2 + interval, 50, interval))


@pytest.mark.parametrize("interval, expected", [(5, 10), (6, 9)])
def test_taylorseer_hunyuan_video(interval, expected):
    assert len(uniform(50, interval).full_steps) == expected


def _layered_dit(steps, interval):
    """The official evaluation in floating point: kinds of layer 0, and the step numbers whose later layers
    differ from it."""
    kinds, split, current = "", [], interval
    for d in range(steps - 1, -1, -1):
        kind = "F" if not kinds or d % current == 0 else "CA"[d % current % 2 == 0]
        if kind == "F":
            current = 2 if 0.2 * steps <= d < 0.4 * steps else round(interval / (1 + 0.4 - 0.8 * d / steps))
            if kinds and d % current:
                split.append(d)
        kinds += kind
    return kinds, split


def test_duca_dit_golden_trace():
    """The published trace with its two split steps, 45 and 32, taken as what they begin as: 18 whole F and 2
    that were split."""
    trace = "FCAC(F|C)FCACFCACFCAC(F|A)CFACFACFACFACFCFCFCFCFCFCFCFCFCF"
    assert duca_dit(50, 3).kinds == trace.replace("(F|C)", "F").replace("(F|A)", "F")
    assert _fca(duca_dit(50, 3)) == (18 + 2, 22, 8)
    assert all(duca_dit(50, 3).kinds[49 - d] == "F" for d in (45, 32))


@pytest.mark.parametrize("interval, split", [(3, [45, 32]), (4, [42, 30, 8]), (5, [40, 35, 15])])
def test_duca_dit_is_layer_zero_of_the_official_code(interval, split):
    kinds, found = _layered_dit(50, interval)
    assert found == split
    assert duca_dit(50, interval).kinds == kinds


def test_duca_dit_alternates_f_and_c_inside_the_sensitive_band():
    band = duca_dit(100, 6).kinds[60:80]
    first = band.index("F")
    assert first < 6 and band[first:] == ("FC" * 10)[: 20 - first]


# Generators


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_interval_one_is_all_full(steps):
    for schedule in (full(steps), uniform(steps, 1), dual(steps, 1), duca_dit(steps, 1)):
        assert schedule.kinds == "F" * steps


def test_window_outside_is_full_and_the_counter_starts_inside():
    assert dual(20, 5, start=0.2, end=0.7).kinds == "FFFF" + "CACAFCACAF" + "FFFFFF"
    assert uniform(10, 4, tail=2).kinds == "FAAAFAAAFF"


def test_window_bounds_round_half_up():
    assert (
        dual(10, 9, start=0.25, end=0.45).kinds == "FFFCAFFFFF"
    )  # 2.5 -> 3 and 4.5 -> 5, where banker's rounding gives 2 and 4


def test_first_step_is_full_without_warmup():
    assert dual(7, 4, warmup=0).kinds == dual(7, 4, warmup=1).kinds == "FCACFCA"


def test_warmup_and_tail_may_overlap():
    assert dual(8, 3, warmup=5, tail=5).kinds == "F" * 8
    assert dual(8, 3, warmup=MAX_STEPS, tail=MAX_STEPS).kinds == "F" * 8


def test_order_cycles_and_restarts_after_a_full_step():
    assert dual(10, 5, order="AC").kinds == "FACACFACAC"
    assert dual(10, 5, order="CCA").kinds == "FCCACFCCAC"


def test_ratios_are_kept_on_every_step():
    assert dual(4, 3, ratio=0.25).ratios == (0.25,) * 4
    assert explicit("FCA", [0, 0.5, 1]).ratios == (0.0, 0.5, 1.0)


def test_from_generator_fills_in_defaults():
    assert from_generator({"type": "dual", "interval": 5}, 20) == dual(20, 5)
    defaults = {"order": "CA", "ratio": 0.1, "warmup": 1, "tail": 0, "start": 0.0, "end": 1.0}
    assert dual(20, 5).generator == {"type": "dual", "interval": 5, **defaults}
    for schedule in (
        full(9),
        uniform(9, 3, 2, 1, 0.1, 0.9),
        dual(9, 3, "AC", 0.2, 2, 1, 0.1, 0.9),
        duca_dit(9, 3, 0.2),
    ):
        assert from_generator(schedule.generator, 9) == schedule


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: uniform(50, 0), "interval must be a whole number from 1 to 10000."),
        (lambda: dual(0, 3), "steps must be a whole number from 1 to 10000."),
        (lambda: full(MAX_STEPS + 1), "steps must be a whole number from 1 to 10000."),
        (lambda: dual(10, 3, ratio=float("nan")), "ratio must be a number from 0 to 1."),
        (lambda: dual(10, 3, start=0.9, end=0.1), "start must not be greater than end."),
        (lambda: explicit("FCA", "0.5"), "ratios must be a list of numbers."),
        (lambda: explicit("FCA", 2), "ratio must be a number from 0 to 1."),
        (lambda: explicit(None), "kinds must be a string of the letters F, C and A."),
        (lambda: explicit(" "), "kinds must have 1 to 10000 letters."),
        (lambda: explicit("F" * (MAX_STEPS + 1)), "kinds must have 1 to 10000 letters."),
        (lambda: CacheSchedule("FC", (0.1, float("nan"))), "ratios[1] must be a number from 0 to 1."),
        (lambda: CacheSchedule("FC", (0.1, 0.1), name=3), "name must be a string."),
        (lambda: from_generator({"type": "dual"}, 5), "generator.interval is missing."),
    ],
)
def test_refusals_name_the_field(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


# The value


def test_immutable_hashable_and_copyable():
    schedule = dual(20, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.kinds = "F"
    schedule.generator["interval"] = 2
    schedule.counts()["F"] = 0
    assert schedule == dual(20, 5) and hash(schedule) == hash(dual(20, 5))
    assert copy.deepcopy(schedule) == schedule and pickle.loads(pickle.dumps(schedule)) == schedule
    ratios = [0.1, 0.2]
    listed = CacheSchedule("FC", ratios)
    ratios[1] = 0.9
    assert listed.ratios == (0.1, 0.2)


def test_a_generator_does_not_outlive_its_steps():
    schedule = dual(4, 3)
    assert dataclasses.replace(schedule, name="mine").generator == schedule.generator
    for change in ({"kinds": "FCAA"}, {"ratios": (0.2,) * 4}):
        edited = dataclasses.replace(schedule, **change)
        assert edited.generator is None
        assert CacheSchedule.from_json(edited.to_json()) == edited


# Scaling


@pytest.mark.parametrize("steps", [1, 3, 8, 30, 200])
def test_generated_schedules_scale_by_their_generator(steps):
    named = dataclasses.replace(dual(50, 5, warmup=3, tail=1, start=0.1, end=0.9), name="mine")
    expected = dual(steps, 5, warmup=3, tail=1, start=0.1, end=0.9)
    assert named.scaled(steps) == dataclasses.replace(expected, name="mine")
    assert named.scaled(steps).scaled(50) == named


@pytest.mark.parametrize("kinds", ["F", "FCA", "FFFCACAFCACA", "FACCFAAACCF" * 3, "FAAAAAAAAA"])
@pytest.mark.parametrize("steps", [1, 2, 5, 12, 33, 100])
def test_explicit_lists_scale_by_position(kinds, steps):
    schedule = explicit(kinds)
    scaled = schedule.scaled(steps)
    assert scaled.steps == steps and scaled.kinds[0] == "F"
    assert set(scaled.kinds) <= set(kinds)
    for kind, count in schedule.counts().items():
        assert abs(scaled.counts()[kind] - count * steps / len(kinds)) < 2  # the shares are kept
    assert schedule.scaled(len(kinds)) is schedule


def test_resampling_to_the_same_count_changes_nothing():
    """Shown through a doubled list, since `scaled` returns the same schedule for the same count."""
    assert explicit("FFCCAACCAAFF").scaled(6).kinds == "FCACAF"
    assert explicit("FCACAF").scaled(12).kinds == "FFCCAACCAAFF"
    assert explicit("FCACA" * 10).scaled(10).kinds == "FCACA" * 2


def test_resampled_conservative_steps_take_the_ratio_of_conservative_steps():
    schedule = explicit("FACAC", [0, 0, 0.2, 0, 0.4])
    for steps in (3, 4, 7, 10, 40):
        scaled = schedule.scaled(steps)
        of_c = [ratio for kind, ratio in zip(scaled.kinds, scaled.ratios, strict=True) if kind == "C"]
        assert of_c and set(of_c) <= {0.2, 0.4} and of_c == sorted(of_c)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "8", None, MAX_STEPS + 1])
def test_scaling_refuses_impossible_counts(steps):
    with pytest.raises(ValueError, match="^steps must be a whole number"):
        explicit("FCA").scaled(steps)


# JSON


@pytest.mark.parametrize(
    "schedule",
    [full(3), uniform(9, 3), dual(50, 5, warmup=3), duca_dit(50, 3), explicit("FCAF", [1, 0.3, 0, 1])],
)
def test_json_round_trip(schedule):
    assert CacheSchedule.from_json(schedule.to_json()) == schedule
    assert CacheSchedule.from_dict(schedule.to_dict()) == schedule


def test_json_form():
    assert json.loads(explicit("FC", [1, 0.5]).to_json()) == {
        "format": 1,
        "kind": "cache_schedule",
        "name": "custom",
        "steps": 2,
        "kinds": "FC",
        "ratios": [1.0, 0.5],
        "generator": None,
    }


def test_json_accepts_whole_floats_and_unknown_fields():
    """JavaScript has one number type; a comment beside the fields harms nobody."""
    data = {**dual(4, 3).to_dict(), "format": 1.0, "steps": 4.0, "comment": "tried on Tuesday"}
    data["generator"]["interval"] = 3.0
    assert CacheSchedule.from_dict(data) == dual(4, 3)


def test_json_refuses_nan_by_field():
    for literal in ("NaN", "Infinity", "-Infinity"):
        text = explicit("FCA").to_json().replace("[0.1, 0.1, 0.1]", f"[0.1, 0.1, {literal}]")
        assert literal in text
        with pytest.raises(ValueError, match=r"^ratios\[2\] must be a number from 0 to 1\.$"):
            CacheSchedule.from_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, None, 3])
def test_json_refuses_what_is_not_json(text):
    with pytest.raises(ValueError, match="^schedule is not valid JSON.$"):
        CacheSchedule.from_json(text)


def test_longest_schedule_is_accepted():
    longest = dual(MAX_STEPS, 5)
    assert CacheSchedule.from_json(longest.to_json()) == longest
    assert explicit(longest.kinds).scaled(MAX_STEPS - 1).steps == MAX_STEPS - 1


def test_growing_windows_are_spectrums():
    """Full steps of 50 as its authors count them, and the first trace by hand."""
    assert [growing(50, growth, warmup=5).counts()["F"] for growth in (0.75, 3)] == [14, 10]
    assert growing(50, 0.75, warmup=5).full_steps == (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46)
    assert growing(6, 0).kinds == "FAFAFA"


def test_modulo_is_ab_caches():
    assert modulo(50, 6, warmup=5).full_steps == (0, 1, 2, 3, 4, 6, 12, 18, 24, 30, 36, 42, 48)


# The fixture shared with JavaScript


def test_committed_fixture_is_current():
    assert fixtures.FIXTURE.read_text(encoding="utf-8") == fixtures.render(fixtures.build()), (
        "run python -m tools.regenerate"
    )


def test_fixture_json_reads_back():
    content = json.loads(fixtures.FIXTURE.read_text(encoding="utf-8"))
    assert {case["generator"]["type"] for case in content["cases"] if case["generator"]} == set(GENERATORS)
    assert {1, 2, 4, 8, 30, 50} <= {case["steps"] for case in content["cases"]}
    for case in content["cases"]:
        schedule = CacheSchedule.from_dict(case["json"])
        assert (schedule.kinds, list(schedule.ratios), schedule.counts()) == (
            case["kinds"],
            case["ratios"],
            case["counts"],
        )


def test_refusals_are_one_sentence():
    content = json.loads(fixtures.FIXTURE.read_text(encoding="utf-8"))
    for case in content["invalid"] + content["invalid_generators"]:
        error = case["error"]
        assert error.endswith(".") and "\n" not in error and ". " not in error
        named = error.split()[0].split("[")[0].split(".")[0]
        assert named in ("schedule", "format", "kind", "name", "steps", "kinds", "ratios", "generator")
