"""Trains the embedded video model from nothing: `python -m demo.train_video`.

Parts, each with checkpoints it resumes from: the code of frames and its decoder (`decoder`), the judge
(`judge`), the transformer (`model`). The parts need nothing of one another but the code's basis, so that they
may run at the same time. About four hours on two CPU cores, minutes on a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .blocks_vae import BlockAutoencoder, train_decoder
from .clip_judge import train_clip_judge
from .clips import draw_clips, encode_clips, random_clips
from .store import CLIP_JUDGE, VIDEO, VIDEO_VAE, save_model, started, text_columns
from .training import Checkpoint, Plan, fit, flow_loss, generator, noised, start, time_arguments
from .wan import WanConfig, WanModel

SHIFT = 2.0
"""Times of training are moved towards noise, where a clip's motion is decided."""


def frame_code(work: Path, seed: int) -> BlockAutoencoder:
    """The autoencoder with the basis of drawn frames and an untrained decoder."""
    vae, done = BlockAutoencoder(), Checkpoint(work / "basis.pt")
    state = done.load()
    if state is None:
        clips = random_clips(160, torch.Generator().manual_seed(seed))
        vae.set_basis(draw_clips(clips).flatten(0, 1))
        done.save({"weight": vae.weight.data, "bias": vae.bias.data})
    else:
        vae.weight.data, vae.bias.data = state["weight"], state["bias"]
    return vae


def train_clip_model(
    vae: BlockAutoencoder,
    plan: Plan,
    folder: Path,
    seed: int,
    device: str,
    batch: int,
    config: WanConfig,
    start_from: Path | None = None,
) -> WanModel:
    """Rectified-flow training of the transformer; a tenth of the captions is dropped, for guidance."""
    model = WanModel(config)
    model.start_training()
    started(model, start_from, VIDEO).to(device)
    vae.to(device)

    def loss_of(step: int):
        gen = generator(seed, step, device)
        with torch.no_grad():
            clips = random_clips(batch, gen)
            frames = draw_clips(clips)
            x0 = vae.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2).contiguous()
            keep = torch.rand(batch, 1, 1, generator=gen, device=device) >= 0.1
            tokens = encode_clips(clips, config.text_dim) * keep
            noise, t, xt = noised(x0, gen, SHIFT)
        with torch.autocast(device, torch.bfloat16):
            v = model(xt, t * 1000, tokens)
        return flow_loss(v, noise, x0)

    return fit(model, loss_of, plan, folder)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/video"), help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=22)
    time_arguments(parser, 10800)
    parser.add_argument(
        "--side-seconds", type=float, default=1800, help="for the decoder and the judge, each"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", choices=("model", "decoder", "judge"), help="train one part")
    args = parser.parse_args(argv)
    device = start(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    vae = frame_code(args.work, args.seed)
    if args.only in (None, "decoder"):
        plan = Plan(args.side_seconds, rate=1e-3, deadline=args.deadline)
        clips = max(1, args.batch // 8)

        def draw(gen):
            return draw_clips(random_clips(clips, gen)).flatten(0, 1)

        train_decoder(vae, draw, plan, args.work / "decoder", args.seed, device)
        save_model(vae, args.out / VIDEO_VAE, dtype=torch.float16)
    if args.only in (None, "judge"):
        plan = Plan(args.side_seconds, rate=2e-3, deadline=args.deadline)
        save_model(
            train_clip_judge(plan, args.work / "judge", args.seed, device),
            args.out / CLIP_JUDGE,
            dtype=torch.float16,
        )
    if args.only in (None, "model"):
        plan = Plan(args.seconds, rate=args.rate or 2e-3, float8=text_columns, deadline=args.deadline)
        model = train_clip_model(
            vae, plan, args.work / "model", args.seed, device, args.batch, WanConfig(), args.start_from
        )
        save_model(model, args.out / VIDEO, text_columns)


if __name__ == "__main__":
    main()
