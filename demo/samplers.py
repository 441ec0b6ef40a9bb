"""Host-free samplers of the further embedded models: clips, emoji pictures, edits, and the long-skip variant.

Each takes what `sampler.sample` takes; `settings` turns caching on, `split` runs the branches of guidance in
two calls."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .blocks_vae import BlockAutoencoder
from .clip_judge import ClipJudge
from .clips import EDGE, FRAMES, encode_clip_caption
from .edit import FluxEdit, encode_instruction
from .emoji import CONFIG, EmojiText
from .emoji_judge import EmojiJudge
from .flux import Flux
from .sampler import Sampled, conditioned, denoise, noise_for, schedule_sigmas
from .scenes import SIZE
from .skip import SkipConfig, SkipFlux
from .store import (
    CLIP_JUDGE,
    EDIT,
    EMOJI,
    EMOJI_JUDGE,
    EMOJI_TEXT,
    EMOJI_VAE,
    NO_SKIP,
    SKIP,
    VIDEO,
    VIDEO_VAE,
    load_model,
    metadata_of,
)
from .wan import WanModel
from .weights import WEIGHTS


def shifted_sigmas(steps: int, shift: float) -> list[float]:
    """Noise levels 1 .. 0 moved towards noise: shift * s / (1 + (shift - 1) * s), as Wan's schedule is."""
    return [shift * s / (1 + (shift - 1) * s) for s in schedule_sigmas(steps)]


def clip_noise(seeds, frames: int = FRAMES, size: int = EDGE) -> torch.Tensor:
    """Unit noise [B,16,frames,size/8,size/8], one generator per seed."""
    shape = (1, 16, frames, size // 8, size // 8)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


def sample_clips(
    model: WanModel,
    captions,
    *,
    steps: int = 30,
    seeds=None,
    guidance: float = 5.0,
    shift: float = 3.0,
    sigmas=None,
    **rest,
) -> Sampled:
    """Samples one clip per caption; latents [B,16,5,16,16]. `rest` goes to `sampler.denoise`."""
    dim = model.config.text_dim
    x = clip_noise(range(len(captions)) if seeds is None else seeds)
    inputs = conditioned(lambda c: (encode_clip_caption(c, dim),), captions, guidance)
    levels = sigmas or shifted_sigmas(steps, shift)
    return denoise(model, x, inputs, levels, guidance=guidance, time_scale=1000.0, **rest)


def sample_emoji(
    model: Flux,
    text: EmojiText,
    captions,
    *,
    steps: int = 30,
    seeds=None,
    guidance: float = 3.0,
    size: int = SIZE,
    sigmas=None,
    **rest,
) -> Sampled:
    """Samples one picture per caption; latents [B,16,32,32]. `rest` goes to `sampler.denoise`."""
    x = noise_for(range(len(captions)) if seeds is None else seeds, size)

    def encode(caption):
        tokens, pooled = text.encode([caption])
        return tokens[0], pooled[0]

    with torch.no_grad():
        inputs = conditioned(encode, captions, guidance)
    return denoise(model, x, inputs, sigmas or schedule_sigmas(steps), guidance=guidance, **rest)


def sample_edits(
    model: FluxEdit,
    references: torch.Tensor,
    instructions,
    *,
    steps: int = 20,
    seeds=None,
    guidance: float = 2.0,
    sigmas=None,
    **rest,
) -> Sampled:
    """Edits references [B,16,h,w] (latents in the model's space) as told. Both branches of guidance read the
    reference. `rest` goes to `sampler.denoise`."""
    if len(references) != len(instructions):
        raise ValueError(f"{len(references)} references came with {len(instructions)} instructions.")
    x = noise_for(range(len(instructions)) if seeds is None else seeds, 8 * references.shape[-1])
    inputs = conditioned(encode_instruction, instructions, guidance)
    inputs = {b: (*v, references) for b, v in inputs.items()}
    return denoise(model, x, inputs, sigmas or schedule_sigmas(steps), guidance=guidance, **rest)


def load_video(folder: Path = WEIGHTS) -> tuple[WanModel, BlockAutoencoder]:
    """The video model and its autoencoder of single frames."""
    command = "demo.train_video"
    return load_model(WanModel(), VIDEO, command, folder), load_model(
        BlockAutoencoder(), VIDEO_VAE, command, folder
    )


def load_clip_judge(folder: Path = WEIGHTS) -> ClipJudge:
    return load_model(ClipJudge(), CLIP_JUDGE, "demo.train_video", folder)


def load_emoji_model(folder: Path = WEIGHTS) -> tuple[Flux, EmojiText, BlockAutoencoder]:
    """The picture model, its text encoder and its autoencoder."""
    command = "demo.train_emoji"
    model = load_model(Flux(CONFIG), EMOJI, command, folder)
    words = json.loads(metadata_of(EMOJI_TEXT, folder)["vocabulary"])
    return (
        model,
        load_model(EmojiText(words), EMOJI_TEXT, command, folder),
        load_model(BlockAutoencoder(), EMOJI_VAE, command, folder),
    )


def load_emoji_judge(folder: Path = WEIGHTS) -> tuple[EmojiJudge, list[str]]:
    """The classifier of emoji and the names of its classes."""
    names = json.loads(metadata_of(EMOJI_JUDGE, folder)["names"])
    return load_model(EmojiJudge(len(names)), EMOJI_JUDGE, "demo.train_emoji", folder), names


def load_edit(folder: Path = WEIGHTS) -> FluxEdit:
    return load_model(FluxEdit(), EDIT, "demo.train_stills edit", folder)


def load_skip(folder: Path = WEIGHTS) -> SkipFlux:
    return load_model(SkipFlux(), SKIP, "demo.train_stills skip", folder)


def load_no_skip(folder: Path = WEIGHTS) -> Flux:
    """The twin of `load_skip` without skips."""
    return load_model(Flux(SkipConfig()), NO_SKIP, "demo.train_stills no_skip", folder)


def decode_clips(vae: BlockAutoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Clips [B,F,3,8h,8w] in 0..1 of latents [B,16,F,h,w], frame by frame."""
    with torch.no_grad():
        frames = vae.decode(latents.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (len(latents), latents.shape[2]))
