"""The further embedded models at tiny size: models, training, sampling with a cache."""

import contextlib
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cache_core.models.families import find_family
from cache_core.recipes import from_preset, preset_names
from demo import clips, edit, emoji, evaluate_models, render, samplers, scenes, training
from demo.blocks_vae import BlockAutoencoder, basis_of_embedded, psnr_of, train_decoder
from demo.clip_judge import ClipJudge, labels_of, read_clips
from demo.emoji_judge import EmojiJudge, read_pictures
from demo.flux import Flux, FluxConfig
from demo.sampler import sample
from demo.skip import SkipConfig, SkipFlux
from demo.store import is_block_matrix, load_model, save_model, started
from demo.train_emoji import TextAndFlux
from demo.train_stills import edit_loss, still_loss
from demo.train_video import train_clip_model
from demo.wan import WanConfig, WanModel
from demo.weights import load_autoencoder

torch.set_num_threads(1)
TINY_WAN = WanConfig(dim=128, ffn=64, layers=4, text_dim=64)
CLIP = "a small red circle moving left fast and a small blue star still on a striped white background"


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(model, seed=0):
    """Random weights of a size that moves the hidden state; norms stay near one."""
    g = gen(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=g) * 0.08
        p.data = noise + 1.0 if "norm" in name and not name.endswith("bias") else noise
    return model.eval().requires_grad_(False)


# --- autoencoder, judges --------------------------------------------------------------------------


def test_the_embedded_encoder_is_one_matrix():
    vae = load_autoencoder()
    code = BlockAutoencoder()
    code.weight.data, code.bias.data = basis_of_embedded(vae)
    pictures = render.draw_stills(render.random_stills(2, gen()), 64)
    assert torch.allclose(code.encode(pictures), vae.encode(pictures), atol=2e-3)


def test_a_decoder_learns(tmp_path):
    def draw(g):
        return render.draw_stills(render.random_stills(4, g), 64)

    vae = BlockAutoencoder()
    vae.set_basis(draw(gen()))
    before = psnr_of(vae, draw(gen(9)))
    train_decoder(vae, draw, training.Plan(600, 12, 2e-3, warm=2), tmp_path, 0, "cpu", 32)
    assert psnr_of(vae, draw(gen(9))) > before + 1


def test_the_clip_judge_is_read_by_colour():
    some = clips.random_clips(6, gen())
    told = labels_of(some)
    assert [int(v.count_nonzero()) for v in told["shape"]] == [1 + int(t) for t in some.two]

    class Knows(torch.nn.Module):
        def forward(self, frames):
            return {n: torch.nn.functional.one_hot(v, 12).float() for n, v in told.items()}

    frames = torch.zeros(6, clips.FRAMES, 3, 64, 64)
    assert all(v.all() for v in read_clips(Knows(), frames, some).values())
    told = {**told, "motion": torch.where(told["motion"] > 0, (told["motion"] - 1 + 2) % 9 + 1, 0)}
    right = read_clips(Knows(), frames, some)
    assert right["shape"].all() and right["colour"].all() and not right["told"].any()
    told = {**labels_of(some), "shape": labels_of(some)["shape"].roll(1, 1)}
    assert not read_clips(Knows(), frames, some)["colour"].any()
    assert not read_clips(ClipJudge(), frames, some)["told"].all()
    with pytest.raises(ValueError, match="clips of 5 frames"):
        read_clips(ClipJudge(), frames[:, :3], some)


def test_the_emoji_judge_names_first_second_and_ground():
    pictures = emoji.random_pictures(8, 3, gen(), 0.5)
    first, ground = read_pictures(EmojiJudge(3), torch.rand(8, 3, 64, 64), pictures, top=3)
    assert first.shape == ground.shape == (8,) and not ground.all()


# --- models, training -----------------------------------------------------------------------------


def test_a_training_that_was_stopped_goes_on(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    start = {k: v.clone() for k, v in model.state_dict().items()}

    def run(folder, *steps):
        for count in steps:
            net = torch.nn.Sequential(torch.nn.Linear(4, 4))
            net.load_state_dict(start)

            def loss(step, net=net):
                x = torch.randn(8, 4, generator=training.generator(0, step, "cpu"))
                return (net(x) - x).square().mean()

            # One schedule for all parts: only the stop differs.
            plan = training.Plan(math.inf, 20, warm=2)
            seen = 0

            def stop(step, loss=loss, count=count):
                nonlocal seen
                seen += 1
                if seen > count:
                    raise KeyboardInterrupt
                return loss(step)

            plan.every = 0
            with contextlib.suppress(KeyboardInterrupt):
                training.fit(net, stop, plan, folder)
        return net

    whole, parts = run(tmp_path / "a", 30), run(tmp_path / "b", 7, 30)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))
    assert not torch.equal(whole[0].weight, start["0.weight"])


def test_muon_equals_torchs_own():
    mine = [
        torch.nn.Parameter(torch.randn(s, generator=gen(i)))
        for i, s in enumerate([(8, 24), (24, 8), (8, 24)])
    ]
    torchs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    a = training.Muon(mine, 2e-2)
    b = torch.optim.Muon(torchs, 2e-2, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for p, q in zip(mine, torchs):
            p.grad = torch.randn(p.shape, generator=gen(step))
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(mine, torchs):
        assert (p - q).abs().max() < 5e-3  # both iterate in bfloat16


def test_the_video_model_trains_and_leaves_unused_text_columns_zero(tmp_path):
    config = WanConfig(dim=128, ffn=64, layers=1, text_dim=96)
    vae = BlockAutoencoder()
    vae.set_basis(clips.draw_clips(clips.random_clips(4, gen())).flatten(0, 1))
    model = train_clip_model(vae, training.Plan(600, 3, warm=1), tmp_path, 0, "cpu", 1, config)
    assert not model.text_embedding[0].weight[:, 64:].any() and model.head.head.weight.any()


@pytest.mark.parametrize("name", ["edit", "skip"])
def test_variants_have_a_loss_with_gradients(name):
    size = FluxConfig(hidden=128, double=1, single=2)
    model = (
        edit.FluxEdit(size)
        if name == "edit"
        else SkipFlux(SkipConfig(hidden=128, double=1, single=2, skips=1))
    )
    code = BlockAutoencoder()
    code.weight.data, code.bias.data = basis_of_embedded(load_autoencoder())
    loss = (edit_loss if name == "edit" else still_loss)(model, code, gen(), 2, "cpu", 64)
    loss.backward()
    named = model.single_blocks[1].skip_linear if name == "skip" else model.img_in
    assert loss.isfinite() and named.weight.grad.abs().max() > 0


def test_without_a_reference_the_edit_model_is_flux():
    model = randomised(edit.FluxEdit(FluxConfig(hidden=128, double=1, single=1)))
    x, t = torch.randn(1, 16, 8, 8, generator=gen()), torch.tensor([0.5])
    told = [v[None] for v in edit.encode_instruction("make the red circle blue")]
    assert torch.equal(model(x, t, *told), Flux.forward(model, x, t, *told))
    assert not torch.equal(model(x, t, *told), model(x, t, *told, x))
    assert not torch.equal(model(x, t, *told, -x), model(x, t, *told, x))


def test_a_skip_that_leads_nowhere_is_refused():
    with pytest.raises(ValueError, match="from an earlier block"):
        SkipFlux(SkipConfig(hidden=128, double=1, single=2, skips=2))


def test_skips_carry_what_early_blocks_gave():
    model = randomised(SkipFlux(SkipConfig(hidden=128, double=1, single=2, skips=1)))
    told = [v[None] for v in scenes.encode_caption("a small red star left")]
    x, t = torch.randn(1, 16, 8, 8, generator=gen()), torch.tensor([0.5])
    seen = []
    model.double_blocks[0].register_forward_hook(lambda m, a, out: seen.append(torch.cat(out[::-1], 1)))
    model.single_blocks[1].register_forward_pre_hook(
        lambda m, a, kw: seen.append(kw["skip"]), with_kwargs=True
    )
    model(x, t, *told)
    assert torch.equal(seen[0], seen[1])


def test_files_hold_matrices_in_float8(tmp_path):
    model = SkipFlux(SkipConfig(hidden=128, double=1, single=2, skips=1))
    save_model(model, tmp_path / "m.safetensors", is_block_matrix)
    state = load_file(tmp_path / "m.safetensors")
    assert state["double_blocks.0.img_attn.qkv.weight"].dtype == torch.float8_e4m3fn
    assert state["img_in.weight"].dtype == state["double_blocks.0.img_attn.qkv.bias"].dtype == torch.bfloat16
    read = load_model(
        SkipFlux(SkipConfig(hidden=128, double=1, single=2, skips=1)), "m.safetensors", "x", tmp_path
    )
    weight = model.double_blocks[0].img_attn.qkv.weight
    assert (read.double_blocks[0].img_attn.qkv.weight - weight).norm() < 0.05 * weight.norm()
    with pytest.raises(FileNotFoundError, match="python -m x"):
        load_model(model, "missing.safetensors", "x", tmp_path)


# --- sampling with a cache ------------------------------------------------------------------------


def runs():
    wan = randomised(WanModel(TINY_WAN))
    skip = randomised(SkipFlux(SkipConfig(hidden=128, double=2, single=3, skips=2)))
    kontext = randomised(edit.FluxEdit(FluxConfig(hidden=128, double=2, single=2)))
    text = randomised(emoji.EmojiText(["apple", "mint", "red"]))
    width = emoji.WIDTH
    flux = randomised(
        Flux(FluxConfig(hidden=128, double=2, single=2, token_dim=width, pooled_dim=emoji.PHRASES * width))
    )
    reference = torch.randn(1, 16, 8, 8, generator=gen(4))
    return {
        "Wan (embedded)": (wan, lambda **k: samplers.sample_clips(wan, [CLIP], **k)),
        "Skip-DiT (embedded)": (skip, lambda **k: sample(skip, ["a red star left"], size=64, **k)),
        "edit": (
            kontext,
            lambda **k: samplers.sample_edits(kontext, reference, ["make the red star blue"], **k),
        ),
        "emoji": (flux, lambda **k: samplers.sample_emoji(flux, text, ["a red apple on mint"], size=64, **k)),
    }


@pytest.fixture(scope="module")
def tiny_runs():
    return runs()


@pytest.mark.parametrize("name", ["Wan (embedded)", "Skip-DiT (embedded)", "edit", "emoji"])
def test_every_preset_runs(tiny_runs, name):
    model, run = tiny_runs[name]
    family = find_family(model).name
    assert family == (name if "(embedded)" in name else "FLUX (embedded)")
    plain = run(steps=6).latents
    for preset in preset_names():
        out = run(steps=6, settings=from_preset(preset))
        assert out.latents.isfinite().all(), preset
        error = (out.latents - plain).norm() / plain.norm()
        assert error < 1.5, (preset, float(error))
        if preset == "off":
            assert error == 0
        if preset == "fora":
            assert 0 < error and "A" in "".join(r.actual for r in out.report.records)


def test_split_branches_equal_joint_ones(tiny_runs):
    _, run = tiny_runs["Wan (embedded)"]
    joint, split = run(steps=2), run(steps=2, split=True)
    assert split.calls == 2 * joint.calls
    assert torch.allclose(joint.latents, split.latents, atol=1e-4)


def test_a_clip_has_frames_and_every_caption_its_own_noise(tiny_runs):
    model, _ = tiny_runs["Wan (embedded)"]
    out = samplers.sample_clips(model, [CLIP, ""], steps=2, guidance=1).latents
    assert out.shape == (2, 16, clips.FRAMES, 16, 16)
    again = samplers.sample_clips(model, [""], steps=2, guidance=1, seeds=[1]).latents
    assert torch.allclose(out[1:], again, atol=1e-4)


def test_references_and_instructions_come_in_pairs(tiny_runs):
    model, _ = tiny_runs["edit"]
    with pytest.raises(ValueError, match="2 references came with 1"):
        samplers.sample_edits(model, torch.zeros(2, 16, 8, 8), ["make the red star blue"])


def test_text_and_transformer_are_trained_together():
    both = TextAndFlux(["apple"], FluxConfig(hidden=128, double=1, single=1, token_dim=128, pooled_dim=384))
    names = [n for n, _ in both.named_parameters() if is_block_matrix(n)]
    assert len(names) == 2 * 5 + 3 and all(n.startswith("flux.") for n in names)


def test_a_sheet_of_few_pictures_is_written(tmp_path):
    evaluate_models.sheet(torch.rand(3, 3, 8, 8), tmp_path / "few.jpg")
    evaluate_models.sheet(torch.rand(9, 3, 8, 8), tmp_path / "many.jpg", 4)
    assert Image.open(tmp_path / "few.jpg").size == (24, 8)
    assert Image.open(tmp_path / "many.jpg").size == (32, 16)
    assert evaluate_models.share(torch.tensor([])) is None


def test_a_training_goes_on_from_a_file(tmp_path):
    size = SkipConfig(hidden=128, double=1, single=2, skips=1)
    model = randomised(SkipFlux(size))
    save_model(model, tmp_path / "m.safetensors")
    again = started(SkipFlux(size), tmp_path, "m.safetensors")
    assert again.training and all(p.requires_grad for p in again.parameters())
    assert torch.allclose(again.img_in.weight, model.img_in.weight, atol=2e-3)
    fresh = SkipFlux(size)
    assert started(fresh, None, "m.safetensors") is fresh
