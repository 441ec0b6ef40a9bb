"""The bench of our own code's cost: what it times, and that page and numbers agree."""

import json

import pytest
import torch

from bench import overhead as bench
from cache_core.controller import Controller
from demo.sampler import schedule_sigmas


@pytest.fixture(scope="module")
def stage():
    return bench.Stage(1, size=64)


@pytest.fixture(scope="module")
def data():
    return json.loads(bench.RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", bench.WAYS)
def test_a_plan_has_every_kind_that_its_way_knows(name):
    settings = bench.WAYS[name]()
    assert settings.schedule.kinds == (bench.DUAL if "DuCa" in name else bench.AGGRESSIVE)


@torch.no_grad()
def test_what_is_kept_stands_in_for_the_blocks(stage):
    """So that what a full step adds is timed without the step."""
    ran = []
    hooks = [
        m.register_forward_hook(lambda m, *_: ran.append(m))
        for m in stage.model.single_blocks[-1].modules()
        if isinstance(m, torch.nn.Linear)
    ]
    try:
        stage.remember(stage.noise, 1.0, whole=False)
        plain, _, _ = stage.evaluate(stage.noise, 1.0)
        hollow, _, kind = stage.evaluate(stage.noise, 1.0, stage.hollow())
        assert torch.equal(hollow, plain) and kind is not None
        for whole in (True, False):
            stage.remember(stage.noise, 1.0, whole)
            cache = Controller(bench.WAYS["TAP (balanced)"](), schedule_sigmas(30))
            inside, _, _ = stage.evaluate(stage.noise, 1.0, stage.hollow(stage.under(cache, 1.0)))
            cache.finish()
            assert torch.equal(inside, plain)
    finally:
        for hook in hooks:
            hook.remove()
    assert ran and not any("forward" in m.__dict__ for m in stage.model.modules())


@torch.no_grad()
def test_without_blocks_only_embedding_and_final_layer_run(stage):
    ran = []
    hooks = [
        m.register_forward_hook(lambda m, *_: ran.append(m))
        for m in stage.model.modules()
        if isinstance(m, torch.nn.Linear)
    ]
    try:
        for modulated in (False, True):
            ran.clear()
            stage.evaluate(stage.noise, 1.0, stage.without(modulated))
            inside = [n for n, m in stage.model.named_modules() if m in ran and "_blocks." in n]
            assert ran and all(n.endswith(".lin") for n in inside) and bool(inside) == modulated
    finally:
        for hook in hooks:
            hook.remove()


def test_a_run_is_measured_and_replaces_its_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZE", 64)
    monkeypatch.setattr(bench, "AGGRESSIVE", "FFF" + "AAF" * 3)
    out = tmp_path / "o.json"
    for ways in (["reuse (fora)"], ["TAP (balanced)", "TaylorSeer, modules (taylorseer)"]):
        bench.main(["--out", str(out), "--batches", "1", "--rounds", "1", "--ways", *ways])
    (run,) = json.loads(out.read_text(encoding="utf-8"))["runs"]
    assert [r["name"] for r in run["rows"]] == ["TAP (balanced)", "TaylorSeer, modules (taylorseer)"]
    for row in run["rows"]:
        assert (
            set(row["kinds"]) == {"F", "A"} and 0 < row["kinds"]["A"]["median"] < row["kinds"]["F"]["median"]
        )
        assert (
            row["beyond"]["median"] < row["kinds"]["A"]["median"]
            and row["added"]["runs"] == row["kinds"]["F"]["runs"] - 1
        )
    assert "| TAP (balanced) |" in capsys.readouterr().out


def test_the_committed_page_is_of_the_committed_numbers(data):
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(data)
    assert [r["name"] for r in data["runs"][0]["rows"]] == list(bench.WAYS)


def test_every_large_function_is_explained(data):
    large = {
        f for run in data["runs"] for row in run["rows"] for found in row["functions"].values() for f in found
    }
    assert large <= set(bench.EXPLAINED)
    assert "not explained" not in bench.page(data)


def test_what_misses_its_aim_is_said(data):
    run = data["runs"][0]
    said = bench.misses(run)
    for row in run["rows"]:
        late = row["added"]["median"] > bench.F_MOST, row["beyond"]["median"] > bench.A_MOST
        assert sum(row["name"] in line for line in said) == sum(late)
