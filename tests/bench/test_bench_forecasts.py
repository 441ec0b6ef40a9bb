"""The forecast bench: every recipe has its row, rows of an interval differ in their forecast alone, and the
page is what was measured."""

import json
import re

import pytest
import torch

from bench import forecasts as bench
from bench.quality import WARMUP
from cache_core.config import CacheConfig
from cache_core.recipes import PRESETS, from_preset
from cache_core.schedule.plan import explicit
from demo.sampler import schedule_sigmas
from tests.tiny_flux import random_flux, run


@pytest.mark.parametrize("name", bench.ROWS)
def test_rows_share_their_steps(name):
    settings = bench.config(name, 50, 5).settings
    assert settings.schedule_for(50).kinds == "F" * WARMUP + "AAAAF" * 9 + "AA"


def test_every_recipe_without_conservative_steps_has_a_row():
    measured = {
        (c.settings.level, c.settings.predictor) for c in (bench.config(n, 50, 5) for n in bench.ROWS)
    }
    for name in PRESETS:
        settings = from_preset(name)
        if "C" not in settings.schedule_for(50).kinds and name not in ("off", "fast"):
            assert (
                settings.level,
                settings.predictor,
            ) in measured or settings.predictor.name == "linear, least squares", name


def test_the_short_list_and_the_timed_rows_are_rows():
    assert set(bench.SHORT) | set(bench.COSTED) <= set(bench.ROWS)


def test_a_run_is_measured_and_replaces_its_part(tmp_path, monkeypatch, capsys):
    out = tmp_path / "f.json"
    monkeypatch.setattr(bench, "SIZE", 64)
    for rows in (["linear"], ["reuse (FORA)", "AB-Cache, output"]):
        bench.main(["--out", str(out), "--steps", "8", "--intervals", "3", "--prompts", "1", "--rows", *rows])
    data = json.loads(out.read_text(encoding="utf-8"))
    assert [[r["curve"] for r in run["rows"]] for run in data["runs"]] == [
        ["uncached", "fewer steps, Euler", "reuse (FORA)", "AB-Cache, output"]
    ]
    printed = capsys.readouterr().out
    assert "| AB-Cache, output |" in printed and "## 8 steps, guidance 1" in printed


def test_with_euler_reusing_the_output_is_one_longer_step():
    """The equivalence that makes fewer steps the rival to beat."""
    model, kinds = random_flux(), "FFAFAAF"
    reused = run(model, CacheConfig(schedule=explicit(kinds), level="output"), steps=len(kinds))
    levels = [s for s, kind in zip(schedule_sigmas(len(kinds)), kinds) if kind == "F"]
    assert torch.allclose(reused.latents, run(model, sigmas=[*levels, 0.0]).latents, atol=1e-5)


def test_the_committed_page_is_of_the_committed_numbers():
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(
        json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    )


def test_the_numbers_of_the_measurements_page_are_those_measured():
    def rows(name):
        data = json.loads((bench.RESULTS.parent / name).read_text(encoding="utf-8"))
        return (
            [r for run in data["runs"] if run["guidance"] == 1 for r in run["rows"]]
            if "runs" in data
            else data["rows"]
        )

    columns = {
        "fewer steps": ("forecasts.json", "fewer steps, Euler"),
        "FORA (reuse)": ("forecasts.json", "reuse (FORA)"),
        "DuCa, random 10 %": ("quality.json", "DuCa, random"),
        "linear 0.9": ("forecasts.json", "linear, gain 0.9"),
        "TAP (default)": ("forecasts.json", "TAP"),
        "planned": ("profile{}.json", "plan, power, 1 first"),
    }
    page = (bench.HERE.parent / "docs" / "measurements.md").read_text(encoding="utf-8")
    tables = re.findall(
        r"^\| full calls of (\d+) \| (.+) \|\n\|[-|]+\|\n((?:\| \d+ \| .+\n)+)", page, re.MULTILINE
    )
    assert [steps for steps, _, _ in tables] == ["50", "30"]
    for steps, head, body in tables:
        for line in body.splitlines():
            calls, *cells = line.strip("| ").split(" | ")
            for title, cell in zip(head.split(" | "), cells, strict=True):
                name, curve = columns[title]
                found = (
                    r
                    for r in rows(name.format("" if steps == "50" else "_30"))
                    if (r["curve"], r["steps"]) == (curve, int(steps))
                )
                row = next((r for r in found if r["full_calls"] == int(calls)), None)
                said = re.match(r"([\d.]+) / ([\d.]+)( \(([\d.]+)x\))?$", cell.replace("*", ""))
                assert (row is None) == (said is None), (calls, title)
                if row:
                    assert (said[1], said[2]) == (f"{row['psnr_median']:.1f}", f"{row['psnr_worst']:.1f}"), (
                        calls,
                        title,
                    )
                    assert said[4] is None or said[4] == f"{row['speedup']:.1f}", (calls, title)
