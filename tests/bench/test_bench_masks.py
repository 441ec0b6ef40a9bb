"""The mask bench: rows share their work, the router learns what its paths tell, and the page is what was
measured."""

import json

import pytest
import torch
from torch import nn

from bench import masks as bench
from bench import routers
from bench.profile import calibration
from cache_core.calibration.bac import reuse_error
from cache_core.config import CacheConfig
from cache_core.schedule.cost import CostModel
from cache_core.schedule.mask_files import router_mask
from cache_core.schedule.masks import Mask
from demo.sampler import sample
from demo.scenes import TOKENS
from tests.tiny_flux import BLUE, RED, SIZE, assert_untouched, random_flux

STEPS = 6
COST = CostModel(width=128, image_tokens=16, text_tokens=TOKENS, double=2, single=2)


@pytest.fixture(scope="module")
def model():
    return random_flux()


@pytest.fixture(scope="module")
def profile(model):
    return bench.record(model, bench.jobs([RED, BLUE, RED], 12, 1.0, 2, SIZE), tokens=bench.TOKENS)


def masked(model, mask, guidance=1.0):
    return sample(
        model,
        [RED, BLUE],
        steps=mask.steps,
        seeds=range(routers.SEED, routers.SEED + 2),
        guidance=guidance,
        size=SIZE,
        settings=CacheConfig(mask=mask, level="module"),
    ).latents


def scores_for(names, seed=0):
    return torch.rand(STEPS, len(names), generator=torch.Generator().manual_seed(seed))


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [3, 6, 9])
def test_masks_of_a_budget_do_with_its_work(profile, budget):
    masks = bench.masks_for(profile, budget, COST)
    assert set(masks) < set(bench.ROWS) and ("split of blocks, runs" in masks) == (budget > 3)
    for name, mask in masks.items():
        exact = name in ("whole steps, reuse", "BAC, cosine", "BAC, error")
        assert (
            COST.share(mask) == pytest.approx(budget / 12)
            if exact
            else 0.6 * budget / 12 < COST.share(mask) <= budget / 12
        ), name


def test_a_profile_of_modules_is_learned_from_all_captions(profile, model):
    assert list(profile.modules) == [
        "double.0.attn",
        "double.0.mlp",
        "double.1.attn",
        "double.1.mlp",
        "single.0",
        "single.1",
    ]
    assert {len(g) for g in (profile.grams, *profile.modules.values())} == {3}


def test_the_split_runs_the_blocks_that_change_most(profile):
    mask = bench.split_of(profile, 9, COST)
    always = {n for n in mask.names if "." in n and all(mask.at(s) & {n, "*"} for s in range(12))}
    worst = max((b for b in ("single.0", "single.1")), key=lambda b: reuse_error(profile.modules[b]))
    assert not mask.runs and bench.split_of(profile, 9, COST, runs=True) == Mask(12, mask.refresh, runs=True)
    assert (
        always
        and all(n.count(".") == 1 for n in always)
        and (worst in always or not always & {"single.0", "single.1"})
    )


# --- the router -----------------------------------------------------------------------------------


def test_scores_are_hard_and_gradients_pass_straight_through():
    scores = torch.tensor([0.0, 0.1, 0.11, 1.0], requires_grad=True)
    hard = routers.Threshold.apply(scores)
    assert hard.tolist() == [0, 0, 1, 1]
    (hard * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert scores.grad.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_training_path_is_the_run_of_its_mask(model, guidance):
    """What the router is trained on is what the pack samples, and its error is none where everything is
    computed."""
    mixing, paths = routers.Mixing(model), routers.Paths(model, [RED, BLUE], STEPS, guidance, SIZE)
    truth, states = paths.uncached()
    assert torch.allclose(states[-1], masked(model, Mask.of(STEPS, {"*": range(STEPS)}), guidance), atol=1e-5)
    scores, x = scores_for(mixing.names), paths.noise
    with torch.no_grad(), mixing.shims():
        for step in range(STEPS):
            mixing.weights = (scores[step] > 0.1 * (1 + 7 * (step % 2))).float() if step else None
            x = paths.advance(x, paths.velocity(x, step), step)
    rows = [
        [n for n, s in zip(mixing.names, row) if s > 0.1 * (1 + 7 * (i % 2))] for i, row in enumerate(scores)
    ]
    assert torch.allclose(x, masked(model, Mask.from_rows(rows), guidance), atol=1e-4)
    assert not torch.allclose(x, states[-1], atol=1e-2)
    assert_untouched(model)
    leaf = torch.ones_like(scores).requires_grad_()
    assert routers.path_error(paths, mixing, leaf, truth, torch.ones(STEPS)) == pytest.approx(0, abs=1e-9)
    assert_untouched(model)


def test_the_error_of_a_path_falls_along_its_gradient(model):
    """Of one step, in which a score moves nothing but its own module."""
    mixing, paths = routers.Mixing(model), routers.Paths(model, [RED], STEPS, 1.0, SIZE)
    truth = paths.uncached()[0]
    scores = torch.ones(STEPS, len(mixing.names))
    scores[1] = 0.0
    weights = torch.nn.functional.one_hot(torch.tensor(1), STEPS).float()

    def error(s):
        leaf = s.clone().requires_grad_()
        return routers.path_error(paths, mixing, leaf, truth, weights), leaf.grad

    base, slope = error(scores)
    gains = []
    for column in range(len(mixing.names)):
        more = scores.clone()
        more[1, column] = 1.0
        gains.append(error(more)[0] - base)
    assert base > 0 and slope[2:].abs().max() == 0
    order = torch.tensor(gains).argsort().tolist()
    assert slope[1].argsort().tolist()[0] in order[:2] and min(gains) < 0


def test_steps_weigh_what_replaying_them_does_to_the_picture(model):
    paths = routers.Paths(model, [RED, BLUE], STEPS, 1.0, SIZE)
    weights = routers.step_weights(paths, routers.Mixing(model))
    plain = paths.uncached()[1][-1]
    ends = [
        masked(model, Mask.of(STEPS, {"*": [s for s in range(STEPS) if s != skip]}))
        for skip in range(1, STEPS)
    ]
    harm = torch.stack([(end - plain).square().mean() for end in ends])
    assert weights[0] == 0 and torch.allclose(weights[1:], harm / harm.mean(), rtol=1e-3)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_the_mask_keeps_to_its_budget_and_uses_it(model, share):
    names = routers.Mixing(model).names
    scores = scores_for(names, 1)
    mask, threshold = routers.held_mask(scores, names, share, COST)
    assert mask.at(0) == {"*"} and COST.share(mask) <= share + 1e-9
    less = [s for s in scores[1:].flatten().tolist() if s <= threshold]
    if less:  # one module more would be too much
        more = router_mask(torch.cat([torch.ones(1, len(names)), scores[1:]]), names, max(less) - 1e-7)
        assert COST.share(more) > share


class Constant(nn.Module):
    """Gives the same whatever goes in."""

    def forward(self, x):
        return torch.linspace(-1, 1, x.shape[-1]).expand_as(x)


@pytest.mark.long
def test_a_router_learns_to_leave_out_what_never_changes():
    model = random_flux()
    model.double_blocks[0].img_mlp, model.double_blocks[0].txt_mlp = Constant(), Constant()
    found = routers.train(model, [RED, BLUE], STEPS, 0.6, COST, 1e9, size=SIZE, iterations=8, quiet=True)
    mask = Mask.read(found["mask"])
    assert "double.0.mlp" not in mask.names and found["paths"] == 8 and mask.steps == STEPS
    assert 0.5 < COST.share(mask) <= 0.6
    assert_untouched(model)
    again = routers.train(model, [RED, BLUE], STEPS, 0.6, COST, 1e9, size=SIZE, iterations=8, quiet=True)
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_is_measured_and_replaces_its_rows(tmp_path, monkeypatch, capsys):
    out = tmp_path / "m.json"
    monkeypatch.setattr(bench, "SIZE", 64)
    monkeypatch.setattr(routers, "BATCH", 1)
    common = ["--out", str(out), "--steps", "8", "--intervals", "3", "--prompts", "1", "--learn", "2"]
    bench.main([*common, "--rows", "BAC, error", "fewer steps, Euler"])
    bench.main([*common, "--rows", "BAC, error", "trained router", "--train", "--minutes", "0.001"])
    data = json.loads(out.read_text(encoding="utf-8"))
    assert sorted(r["curve"] for r in data["rows"]) == [
        "BAC, error",
        "fewer steps, Euler",
        "trained router",
        "uncached",
    ]
    assert all(r["share"] <= r["budget"] / 8 for r in data["rows"] if r["psnr_median"] is not None)
    text = capsys.readouterr().out
    assert "| trained router |" in text and "Against *fewer steps, Euler*" in text
    bench.main([*common[:2], "--steps", "9", *common[4:], "--rows", "FORA, modules"])
    assert sorted(r["curve"] for r in json.loads(out.read_text(encoding="utf-8"))["rows"]) == [
        "FORA, modules",
        "uncached",
    ]


def test_the_committed_page_is_of_the_committed_numbers():
    data = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(data)
    assert not set(data["prompts"]) & set(calibration(data["learned"]))
    assert {r["curve"] for r in data["rows"]} == {"uncached", *bench.ROWS}
