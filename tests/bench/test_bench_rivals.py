"""The rivals bench: what it samples, how it gathers what workers tell, and that the pages and presets say
what was measured."""

import copy
import json

import pytest

from bench import measured, rivals
from bench import rivals_page as pages
from bench.quality import prompts
from cache_core.recipes import PRESETS, preset, settings_of

GENERAL = ("quality", "balanced", "fast")


@pytest.fixture(scope="module")
def data():
    return rivals.read(rivals.RESULTS)


def run_of(data, part):
    return next(r for r in data["runs"] if r["part"] == part)


# --- what is sampled ------------------------------------------------------------------------------


@pytest.mark.parametrize("part", rivals.PARTS)
def test_every_part_has_its_rivals(part):
    rows = rivals.rows_of(part)
    assert rows[0]["group"] == "plain" and rows[0]["nodes"] == [] and rows[0]["steps"] == rivals.STEPS
    assert {"fewer", "core", "preset", "plan"} <= {r["group"] for r in rows}
    assert {r["sampler"] for r in rows if r["group"] == "fewer"} >= {"euler", "dpmpp_2m"}
    assert {r["label"] for r in rows if r["group"] == "preset"} >= {*GENERAL, "planned"}
    keys = [rivals.key_of(r) for r in rows]
    assert len(set(keys)) == len(keys)
    assert json.loads(json.dumps(rows)) == rows


def test_the_packs_of_others_are_sampled_where_they_are_found():
    for part in ("new", "bf16", "old"):
        assert {r["pack"] for r in rivals.rows_of(part) if "pack" in r} == set(rivals.PACKS)


def test_candidates_are_recipes_and_none_of_the_presets():
    for row in (r for r in rivals.rows_of("new") if r["group"] in ("candidate", "plan")):
        ((node, inputs),) = row["nodes"]
        recipe = {k: v for k, v in json.loads(inputs["recipe"]).items() if k not in ("format", "kind")}
        assert node == "FeatureForecast" and settings_of(recipe)
        assert not any(
            recipe["generator"] == p.get("generator")
            and recipe["predictor"] == p.get("predictor")
            and "speedup" not in recipe
            for p in map(preset, rivals.SAMPLED_PRESETS)
        )


def test_comfyui_is_found_where_it_is_said_to_be(tmp_path, monkeypatch):
    (tmp_path / "comfy").mkdir()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setattr(rivals.Path, "home", lambda: tmp_path / "nowhere")
    assert rivals.comfyui("new") is None
    (tmp_path / "main.py").touch()
    assert rivals.comfyui("new") == tmp_path
    python = tmp_path / ".venv" / "bin" / "python"
    assert rivals.python_of(tmp_path) is None
    python.parent.mkdir(parents=True)
    python.touch()
    assert rivals.python_of(tmp_path) == str(python)


def test_packs_are_found_by_their_folders(tmp_path):
    (tmp_path / rivals.PACKS[1]).mkdir()
    assert rivals.found_packs(tmp_path) == rivals.found_packs(None) == {}
    (tmp_path / rivals.PACKS[1] / "__init__.py").touch()
    assert list(rivals.found_packs(tmp_path)) == [rivals.PACKS[1]]


def test_without_comfyui_it_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "comfyui", lambda which: None)
    with pytest.raises(SystemExit, match="set COMFYUI_OLD_PATH to one"):
        rivals.main(["--parts", "old", "--out", str(tmp_path / "r.json")])
    assert not (tmp_path / "r.json").exists()


# --- what is gathered -----------------------------------------------------------------------------


def told(captions, worse=0.0):
    """What a worker tells of three rows, the last of which fails; every caption is finished but the last."""
    lines = [
        {
            "versions": {
                "comfyui": "1",
                "torch": "2",
                "python": "3",
                "dtype": "float32",
                "cast": "",
                "threads": 1,
                "not_loaded": {},
            }
        },
        {"load_before": [0.5, 0, 0]},
        {"row": 2, "error": "TypeError: no"},
    ]
    for c in captions:
        lines.append({"row": 0, "caption": c, "cpu": 1.0, "wall": 2.0, "full_calls": 30})
        lines.append(
            {
                "row": 1,
                "caption": c,
                "cpu": 0.5 + c / 100,
                "wall": 1.0,
                "full_calls": 9,
                "ssim": 0.9,
                "psnr": float("inf") if c == 0 else 40.0 + c - worse,
            }
        )
        lines += [{"caption": c, "done": True}] if c != captions[-1] else []
    return [*lines, {"load_after": [1.5, 0, 0]}]


def gathered(captions, known=None, **more):
    rows = [
        rivals.row("plain", "plain", "30"),
        rivals.row("fewer", "f", "9", steps=9),
        rivals.row("pack", "p", "1"),
    ]
    job = {"rows": rows, "captions": prompts(6), "guidance": 1.0, "size": 64}
    return rivals.result("new", job, told(captions, **more), {}, known)


def test_only_captions_that_were_finished_count():
    run = gathered([0, 1, 2, 3])
    plain, fewer, failed = run["rows"]
    assert run["captions"] == prompts(6)[:3] and run["loads"] == [0.5, 1.5]
    assert fewer["psnr"] == [None, 41.0, 42.0] and (fewer["psnr_median"], fewer["psnr_worst"]) == (42.0, 41.0)
    assert fewer["seconds"] == 0.51 and fewer["calls"] == 9 and "psnr" not in plain
    assert failed["error"] == "TypeError: no" and "seconds" not in failed


def test_later_captions_join_the_earlier_ones():
    first = gathered([0, 1, 2])
    both = gathered([4, 5, 0], first, worse=10)
    assert both["captions"] == [*prompts(6)[:2], *prompts(6)[4:6]]
    assert both["rows"][1]["psnr"] == [None, 41.0, 34.0, 35.0] and both["rows"][1]["psnr_worst"] == 34.0
    assert rivals.read(rivals.RESULTS)["runs"]  # and what is committed has the same form
    assert {*both} == {*run_of(rivals.read(rivals.RESULTS), "new")}


def test_results_survive_the_file(tmp_path):
    data = {"format": 1, "kind": "rivals_bench", "runs": [gathered([0, 1])]}
    (tmp_path / "r.json").write_text(rivals.text_of(data), encoding="utf-8")
    assert rivals.read(tmp_path / "r.json") == data


def test_front_holds_what_nothing_beats():
    rows = [
        {"seconds": s, "psnr_worst": p}
        for s, p in ((1.0, 30.0), (2.0, 29.0), (3.0, 40.0), (3.0, 41.0), (4.0, None), (5.0, 50.0))
    ]
    assert pages.front(rows, "psnr_worst") == [rows[0], rows[3], rows[4]]


# --- what is said ---------------------------------------------------------------------------------


def test_committed_results_are_whole(data):
    for run in data["runs"]:
        count = len(run["captions"])
        assert set(run["captions"]) <= set(prompts(16)) and count
        for row in run["rows"]:
            assert "error" in row or all(
                len(row[name]) == count for name in rivals.MEASURES if name in row
            ), row["curve"]
            if "error" not in row:
                again = rivals.summary({name: row[name] for name in rivals.MEASURES if name in row})
                assert again == {k: row[k] for k in again}


def test_the_committed_page_is_of_the_committed_numbers(data):
    assert rivals.PAGE.read_text(encoding="utf-8") == pages.page(data)
    changed = copy.deepcopy(data)
    changed["runs"][0]["rows"][2]["psnr_median"] += 1
    assert pages.page(changed) != pages.page(data)


def test_the_measurements_page_has_the_table_that_was_measured(data):
    text = rivals.MEASUREMENTS.read_text(encoding="utf-8")
    assert pages.with_table(text, data) == text
    with pytest.raises(ValueError, match="must hold"):
        pages.with_table("nothing", data)


def test_what_the_measurements_page_says_of_rivals_holds(data):
    run = run_of(data, "new")
    rows = pages.compared(run)
    assert all(
        any(r["label"] == "balanced" for r in pages.front(rows, m)) for m in ("psnr_median", "psnr_worst")
    )
    quality, tap = (
        next(r for r in rows if (r["curve"], r["label"]) == key)
        for key in (("quality", "quality"), ("TAP, 3 first, 1 last", "N 2"))
    )
    assert (
        quality["calls"] == tap["calls"]
        and quality["psnr_median"] > tap["psnr_median"]
        and quality["psnr_worst"] > tap["psnr_worst"]
    )
    assert any(r["label"] == "fast" for r in pages.front(rows, "psnr_median"))
    little = [r for r in rows if r["seconds"] < pages.plain_seconds(run) / 3]
    for measure in ("psnr_median", "psnr_worst"):
        assert max(little, key=lambda r: r[measure])["sampler"] == "dpmpp_2m"
    for measure in ("exact_median", "exact_worst"):
        assert (
            max((r for r in rows if r["calls"] <= 12), key=lambda r: r[measure])["curve"]
            == "fewer steps, dpmpp_2m"
        )
    euler = {r["calls"]: r["psnr_median"] for r in rows if r["curve"] == "fewer steps, euler"}
    assert max(r["psnr_median"] for r in rows if r["group"] == "core") < min(euler.values())
    for part in data["runs"]:
        lost = [r["psnr_median"] < pages.LOWEST for r in part["rows"] if r["curve"] == "EasyCache"]
        assert all(lost) if part["dtype"] == "float32" else not any(lost)


def test_what_the_measurements_page_says_of_guidance_holds(data):
    run = run_of(data, "guided")
    rows = pages.compared(run)
    euler = sorted(
        (r["seconds"], r["psnr_median"], r["psnr_worst"]) for r in rows if r["curve"] == "fewer steps, euler"
    )

    def between(seconds, column):
        """Of fewer Euler steps in equal time."""
        low, high = (
            (end(e for e in euler if sign * e[0] <= sign * seconds) for end, sign in ((max, 1), (min, -1)))
            if seconds < euler[-1][0]
            else (euler[-1],) * 2
        )
        share = 0 if low == high else (seconds - low[0]) / (high[0] - low[0])
        return low[column] + share * (high[column] - low[column])

    def ahead(label, measure):
        row = next(r for r in rows if r["label"] == label)
        return row[measure] > between(row["seconds"], 1 if measure == "psnr_median" else 2)

    for label in GENERAL:
        assert ahead(label, "psnr_median") and ahead(label, "psnr_worst"), label
    assert ahead("planned", "psnr_worst") and not ahead("planned", "psnr_median")
    nine, quarter = (next(r for r in rows if r["label"] == label) for label in ("9", "4x"))
    assert quarter["psnr_median"] < nine["psnr_median"] and quarter["psnr_worst"] < nine["psnr_worst"]


def test_every_preset_names_the_measurement_behind_it():
    for name in PRESETS:
        if preset(name).get("experimental"):
            assert "measured" not in preset(name), name
        elif name not in measured.NOT_MEASURED:
            assert preset(name)["measured"] == measured.sentence(name)
    text = measured.RECIPES.read_text(encoding="utf-8")
    assert measured.with_measurements(text) == text
    with pytest.raises(ValueError, match="has not been measured"):
        measured.sentence("no preset")


@pytest.mark.parametrize("name", GENERAL)
def test_the_general_presets_lie_on_the_front_of_what_they_were_chosen_from(name, data):
    """Among what needs no profile, nothing as fast is better both in the median and in the worst picture."""
    rows = [
        r
        for r in pages.compared(run_of(data, "new"))
        if r["group"] == "candidate" or r["label"] in (*GENERAL, "adaptive")
    ]
    on_front = [{r["label"] for r in pages.front(rows, measure)} for measure in ("psnr_median", "psnr_worst")]
    assert any(name in labels for labels in on_front)
