"""A profile holds what a run's features make of each other, says what it holds for, and reads no file that is
not one."""

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cache_core.calibration import recorder
from cache_core.calibration.profile import Profile
from cache_core.calibration.recorder import Recorder
from cache_core.config import CacheConfig
from cache_core.controller import Controller
from demo.sampler import schedule_sigmas
from tests.tiny_flux import BLUE, RED, assert_untouched, evaluate, inputs, random_flux, run

SIGMAS = (1.0, 0.7, 0.4, 0.0)
IDENTITY = {"family": "FLUX", "sampler": "euler", "guidance": 1.0, "resolution": "64 x 64"}


@pytest.fixture(scope="module")
def model():
    return random_flux()


@pytest.fixture
def profile():
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Profile(x @ x.mT, SIGMAS, IDENTITY)


@pytest.mark.parametrize("how", [{"guidance": 1}, {"guidance": 2}, {"guidance": 2, "split": True}], ids=str)
def test_recording_changes_nothing_and_keeps_every_product(model, how):
    seen = []
    handle = model.single_blocks[-1].register_forward_hook(lambda m, args, out: seen.append(out.clone()))
    plain = run(model, captions=(RED, BLUE), **how)
    handle.remove()
    recorder = Recorder()
    recorded = run(model, CacheConfig(observer=recorder), captions=(RED, BLUE), **how)
    assert torch.equal(plain.latents, recorded.latents)
    assert_untouched(model)
    branches = 1 if how["guidance"] == 1 else 2
    if how.get("split"):
        paths = [torch.stack(seen[i::2]) for i in range(2)]
    else:
        paths = torch.stack(seen).chunk(branches, dim=1)
    grams = recorder.grams()
    assert grams.shape == (2 * branches, 6, 6) and grams.dtype == torch.float64
    wanted = torch.cat([torch.einsum("tbnd,sbnd->bts", p.double(), p.double()) for p in paths])
    wanted = wanted / wanted.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    assert torch.allclose(grams, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("how", [{"guidance": 1}, {"guidance": 2}, {"guidance": 2, "split": True}], ids=str)
@pytest.mark.parametrize("tokens", [3, 100])
def test_modules_are_recorded_too_from_the_same_rows_at_every_step(model, how, tokens):
    """Of the tokens chosen, or of all where they are few; text and image of a module in sum, and a fused
    block as one."""
    sites = {
        "double.1.attn": ("double_blocks.1.img_attn.proj", "double_blocks.1.txt_attn.proj"),
        "double.0.mlp": ("double_blocks.0.img_mlp", "double_blocks.0.txt_mlp"),
        "single.1": ("single_blocks.1.linear2",),
    }
    seen = {path: [] for paths in sites.values() for path in paths}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda m, args, out, path=path: seen[path].append(out.clone())
        )
        for path in seen
    ]
    plain = run(model, captions=(RED, BLUE), **how)
    for handle in handles:
        handle.remove()
    recorder = Recorder(tokens)
    recorded = run(model, CacheConfig(observer=recorder), captions=(RED, BLUE), **how)
    assert torch.equal(plain.latents, recorded.latents) and {r.actual for r in recorded.report.records} == {
        "F"
    }
    grams = recorder.module_recorder.grams()
    assert list(grams) == [
        "double.0.attn",
        "double.0.mlp",
        "double.1.attn",
        "double.1.mlp",
        "single.0",
        "single.1",
    ]
    assert recorder.grams().shape == grams["single.0"].shape == (2 if how["guidance"] == 1 else 4, 6, 6)
    for name, paths in sites.items():
        total = 0
        for path in paths:
            x = torch.stack(seen[path])
            x = torch.cat([torch.stack(seen[path][i::2]) for i in range(2)], 1) if how.get("split") else x
            rows = torch.randperm(x.shape[2], generator=torch.Generator().manual_seed(0))[:tokens]
            some = x[:, :, rows].double()
            total = total + torch.einsum("tbnd,sbnd->bts", some, some) * x.shape[2] / len(rows)
        wanted = total / total.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        assert torch.allclose(grams[name], wanted, rtol=1e-9, atol=0), name


def test_modules_that_change_size_are_refused_with_a_sentence(model):
    recorder = Recorder(3)
    cache = Controller(CacheConfig(observer=recorder), schedule_sigmas(4))
    for sigma, text in zip(schedule_sigmas(4), (5, 5, 9, 9)):
        evaluate(cache, model, sigma, data=inputs(model, text=text))
    with pytest.raises(ValueError, match="the size of the features changed"):
        recorder.module_recorder.grams()
    with pytest.raises(ValueError, match="nothing was recorded"):
        Recorder(3).module_recorder.grams()


def test_rows_of_modules_are_all_that_is_kept(model):
    peaks = {}
    for steps in (3, 9):
        recorder = Recorder(3)
        settings = CacheConfig(observer=recorder)
        peaks[steps] = run(model, settings, steps=steps, guidance=1).report.peak_bytes
        rows = [r for _, kept in recorder.module_recorder._kept.values() for r in kept]
        assert len(rows) == steps * (2 * 4 + 2) and {tuple(r.shape) for r in rows} == {(1, 3, 128)}
    assert peaks[9] == peaks[3] == 0  # nothing is kept on the model's device


def test_a_recorded_run_reports_full_steps_only(model):
    result = run(model, CacheConfig(observer=Recorder()))
    assert {r.actual for r in result.report.records} == {"F"}


def test_a_recorded_run_keeps_nothing_on_the_models_device(model):
    for observer in (Recorder(), Recorder(3)):
        assert run(model, CacheConfig(observer=observer), steps=3, guidance=1).report.peak_bytes == 0


def test_products_are_summed_some_values_at_a_time(monkeypatch):
    one, other = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    monkeypatch.setattr(recorder, "AT_ONCE", 6)
    assert torch.allclose(
        recorder._product(one, other), (one.double() * other.double()).sum((1, 2)), rtol=1e-12
    )


def test_nothing_recorded_is_said():
    with pytest.raises(ValueError, match="nothing was recorded"):
        Recorder().grams()


def test_files_come_back_and_are_not_overwritten(profile, tmp_path):
    path = tmp_path / "mine.safetensors"
    profile.save(path)
    read = Profile.load(path)
    assert (
        torch.equal(read.grams, profile.grams)
        and (read.sigmas, read.identity) == (SIGMAS, IDENTITY)
        and read.resampled is None
    )
    assert path.stat().st_size < 2000
    with pytest.raises(FileExistsError, match="mine.safetensors exists already"):
        profile.save(path)


def test_a_file_is_added_to_beside_it_and_nothing_else_is_left(profile, tmp_path, monkeypatch):
    path, written = tmp_path / "mine.safetensors", []

    def save(tensors, name, metadata):
        written.append(name)
        save_file(tensors, name, metadata=metadata)
        if len(written) > 2:
            raise SafetensorError("No space left on device")

    monkeypatch.setattr("cache_core.calibration.profile.save_file", save)
    for count in (2, 4):
        assert len(profile.add_to(path).grams) == count
    with pytest.raises(OSError, match="could not be written: No space"):
        profile.add_to(path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"] and len(Profile.load(path).grams) == 4
    assert len(set(written)) == 3 and {name.parent for name in written} == {tmp_path}


def test_files_hold_modules_in_running_order(profile, tmp_path):
    modules = {
        name: torch.eye(3, dtype=torch.float64).repeat(2, 1, 1) * i
        for i, name in enumerate(("single.0", "double.0.attn"), 1)
    }
    both = Profile(profile.grams, SIGMAS, IDENTITY, modules=modules)
    path = tmp_path / "mine.safetensors"
    profile.save(path)
    assert Profile.load(path).modules == {}
    whole = both.add_to(path)
    read = Profile.load(path)
    assert list(read.modules) == ["single.0", "double.0.attn"] == list(whole.modules)
    assert all(torch.equal(read.modules[n], modules[n]) for n in modules) and len(read.grams) == 4
    twice = read.merged(both)
    assert {n: len(g) for n, g in twice.modules.items()} == {"single.0": 4, "double.0.attn": 4}
    new = both.at((1.0, 0.85, 0.7, 0.4, 0.0))
    assert new.modules["single.0"][0, 1].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.0])


def test_files_from_before_modules_were_kept_still_load(profile, tmp_path):
    path = tmp_path / "old.safetensors"
    save_file({"grams": profile.grams}, path, metadata={"profile": json.dumps(HEAD)})
    assert Profile.load(path).modules == {} and "modules" not in HEAD


@pytest.mark.parametrize(
    "order",
    ["single.0", [1], [], ["single.0", "single.0", "x"], ["single.0", "single.1"], {"single.0": 1}],
    ids=str,
)
def test_files_whose_modules_have_no_order_are_refused_in_a_sentence(profile, tmp_path, order):
    path = tmp_path / "odd.safetensors"
    save_file(
        {"grams": profile.grams, "grams/single.0": profile.grams.clone()},
        path,
        metadata={"profile": json.dumps({**HEAD, "modules": order})},
    )
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        Profile.load(path)


def test_what_differs_is_said(profile):
    assert profile.differences(IDENTITY, SIGMAS) == []
    assert profile.differences({"sampler": "heun"}) == ["sampler is heun, the profile's euler"]
    assert profile.differences({}, (1.0, 0.5, 0.0)) == ["the run has 2 steps, the profile 3"]
    assert profile.differences({}, (1.0, 0.7, 0.5, 0.0)) == ["the noise levels are others"]
    other = Profile(profile.grams, SIGMAS, {**IDENTITY, "sampler": "heun"})
    with pytest.raises(ValueError, match="sampler is heun"):
        profile.merged(other)
    assert len(profile.merged(profile).grams) == 4


def test_other_noise_levels_interpolate_the_features(profile):
    """The Gram matrix of features interpolated along sigma is the interpolated Gram matrix, and the profile
    says where it comes from."""
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new = profile.at((1.0, 0.85, 0.55, 0.4, 0.0))
    rows = torch.stack([x[:, 0], (x[:, 0] + x[:, 1]) / 2, (x[:, 1] + x[:, 2]) / 2, x[:, 2]], 1)
    assert torch.allclose(new.grams, rows @ rows.mT) and new.resampled == 3 and new.steps == 4
    assert profile.at(SIGMAS) is profile


def test_levels_between_the_recorded_ones_are_limited(profile):
    """Between two recorded steps features count as a line, which every forecast follows for nothing."""
    with pytest.raises(ValueError, match="has 3 recorded steps where the run has 6, too few to plan from"):
        profile.at((1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0))
    with pytest.raises(ValueError, match="go beyond those of the profile"):
        profile.at((2.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="must not rise"):
        profile.at((0.7, 0.4, 0.7, 0.0))
    with pytest.raises(ValueError, match="at least two"):
        profile.at(())
    half = profile.at((0.7, 0.4, 0.0))
    assert half.steps == 2 and half.at((0.7, 0.5, 0.4, 0.0)).resampled == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"grams": torch.zeros(2, 3, 4)}, "grams"),
        ({"grams": torch.zeros(0, 3, 3)}, "grams"),
        ({"grams": torch.full((1, 3, 3), torch.nan)}, "grams"),
        ({"grams": -torch.eye(3)[None]}, "grams"),
        ({"grams": 1e300 * torch.eye(3, dtype=torch.float64)[None]}, "grams"),
        ({"grams": torch.ones(1, 3, 3).triu()}, "grams"),
        ({"grams": torch.eye(3)[None].flip(1)}, "grams"),
        ({"grams": torch.ones(1, 3, 3, dtype=torch.int8)}, "grams"),
        ({"modules": {"single.0": torch.zeros(1, 2, 2)}}, "modules.single.0"),
        ({"modules": {"single.0": -torch.eye(3)[None]}}, "modules.single.0"),
        ({"modules": {7: torch.zeros(1, 3, 3)}}, "modules"),
        ({"tokens": torch.zeros(0, 3, 4)}, "tokens"),
        ({"sigmas": (1.0,)}, "sigmas"),
        ({"sigmas": (1.0, float("inf"), 0.1, 0.0)}, "sigmas"),
    ],
    ids=str,
)
def test_bad_profiles_name_the_field(profile, change, field):
    with pytest.raises(ValueError, match=f"^{field} must"):
        Profile(**{"grams": profile.grams, "sigmas": SIGMAS, **change})


HEAD = {"format": 1, "kind": "cache_profile", "sigmas": list(SIGMAS), "identity": {}, "resampled": None}


@pytest.mark.parametrize(
    "head",
    [
        None,
        "[]",
        "{",
        json.dumps({**HEAD, "kind": "workflow"}),
        json.dumps({**HEAD, "format": 2}),
        json.dumps({**HEAD, "sigmas": "1"}),
        json.dumps({**HEAD, "sigmas": [1, True, 0.5, 0]}),
        json.dumps({**HEAD, "sigmas": [1, 0]}),
        json.dumps({**HEAD, "identity": []}),
        json.dumps({**HEAD, "identity": {"family": {}}}),
        "[" * 100_000,
        json.dumps({**HEAD, "sigmas": [10**400, 1, 0.5, 0]}),
    ],
    ids=lambda h: str(h)[:40],
)
def test_files_that_are_no_profile_are_refused_in_a_sentence(head, profile, tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file({"grams": profile.grams}, path, metadata=None if head is None else {"profile": head})
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        Profile.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 8, b"\xff" * 64, b"PK\x03\x04", (10).to_bytes(8, "little") + b'{"grams":1']
)
def test_files_of_another_kind_are_refused_in_a_sentence(content, tmp_path):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a profile"):
        Profile.load(path)
    with pytest.raises(ValueError, match="is not there"):
        Profile.load(tmp_path / "missing.safetensors")


def test_only_watched_full_steps_are_hooked(model):
    """Without a recorder a run of full steps alone touches nothing."""
    cache = Controller(CacheConfig(), schedule_sigmas(3))
    cache.begin_evaluation(1.0)
    with cache.call(model, ["c"]):
        assert_untouched(model)
