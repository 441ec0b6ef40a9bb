"""Trains the embedded model from nothing: `python -m demo.train`.

Stages, each with a progress bar and a checkpoint it resumes from: (1) the autoencoder's block basis, (2) the
    transformer, first on 64 then on 256 tokens, (3) the autoencoder's decoder, (4) the judge, (5) export to
    safetensors. With --compile about an hour and a half on two CPU cores with AVX512-BF16; minutes on a GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from tqdm import tqdm

from . import autoencoder as ae
from .flux import Flux, FluxConfig
from .judge import train_judge
from .scenes import SIZE, caption_of, draw_scene, encode_caption, random_scene
from .weights import WEIGHTS, save_weights

log = logging.getLogger("demo.train")


def drawn(rng, count: int, size: int):
    """`count` random scenes and their pictures [count,3,size,size]."""
    scenes = [random_scene(rng) for _ in range(count)]
    return scenes, torch.from_numpy(np.stack([draw_scene(s, size) for s in scenes])).permute(0, 3, 1, 2)


def conditions(scenes, rng, drop: float = 0.1):
    """Token and pooled conditioning of scenes; a share `drop` is emptied, for classifier-free guidance."""
    tokens, pooled = (torch.stack(v) for v in zip(*(encode_caption(caption_of(s)) for s in scenes)))
    keep = torch.from_numpy((rng.random(len(scenes)) >= drop).astype(np.float32))
    return tokens * keep[:, None, None], pooled * keep[:, None]


class Checkpoint:
    """A training state on disk, written atomically so that a stop at any time can be resumed."""

    def __init__(self, path: Path):
        self.path = path

    def load(self):
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def save(self, state):
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)


def train_basis(folder: Path, seed: int):
    """Principal components of the generator's pixel blocks, see `autoencoder.block_basis`."""
    done = Checkpoint(folder / "basis.pt")
    state = done.load()
    if state is None:
        _, pictures = drawn(np.random.default_rng(seed), 400, SIZE)
        weight, bias = ae.block_basis(pictures)
        state = {"weight": weight, "bias": bias}
        done.save(state)
    return state["weight"], state["bias"]


def latents_of(pictures, basis):
    """Latents [B,16,h,w] of pictures, by the same linear map that `write_encoder` puts into the encoder."""
    b, _, h, w = pictures.shape
    z = ae.blocks_of(pictures) @ basis[0].T + basis[1]
    return z.reshape(b, h // 8, w // 8, ae.CHANNELS).permute(0, 3, 1, 2)


def optimizers(model, rate: float):
    """Muon for the blocks' matrices, AdamW for embeddings, modulation, norms and biases."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        inner = p.ndim == 2 and "_blocks." in name and "mod" not in name
        (matrices if inner else rest).append(p)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_transformer(
    folder: Path, basis, seed: int, stages, rate: float, device: str, compiled: bool, every: int = 50
):
    """Rectified-flow training (Liu et al. 2022; logit-normal times, Esser et al. 2024) of an exponential
    moving average.

    stages: (edge in pixels, steps, batch) in order; the learning rate warms up once and falls to zero over
        the last 40 %."""
    torch.manual_seed(seed)
    total = sum(s[1] for s in stages)
    model = Flux(FluxConfig()).to(device)
    for name, p in model.named_parameters():
        if name.endswith("lin.weight") or "adaLN" in name or name.startswith("final_layer.linear"):
            torch.nn.init.zeros_(p)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    opts = optimizers(model, rate)
    done, step0 = Checkpoint(folder / "transformer.pt"), 0
    state = done.load()
    if state is not None:
        model.load_state_dict(state["model"])
        ema = {k: v.to(device) for k, v in state["ema"].items()}
        for o, s in zip(opts, state["opts"]):
            o.load_state_dict(s)
        step0 = state["step"]
    run = torch.compile(model) if compiled else model
    starts = np.cumsum([0] + [s[1] for s in stages])
    bar, smooth = tqdm(total=total, initial=step0, desc="transformer"), None
    for step in range(step0, total):
        stage = int(np.searchsorted(starts, step, side="right")) - 1
        edge, _, batch = stages[stage]
        rng = np.random.default_rng([seed, step])
        scenes, pictures = drawn(rng, batch, edge)
        tokens, pooled = (v.to(device) for v in conditions(scenes, rng))
        x0 = latents_of(pictures, basis).to(device)
        gen = torch.Generator().manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(x0.shape, generator=gen).to(device)
        t = torch.sigmoid(torch.randn(batch, generator=gen) * 1.1).to(device)
        xt = torch.lerp(x0, noise, t[:, None, None, None])
        with torch.autocast(device, torch.bfloat16):
            v = run(xt, t, tokens, pooled, grid_step=SIZE / edge)
        loss = nnf.mse_loss(v.float(), noise - x0)
        factor = min(1.0, (step + 1) / 100, (total - step) / (0.4 * total))
        for o in opts:
            for g in o.param_groups:
                g["lr"] = rate * factor
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad()
        decay = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            for k, p in model.state_dict().items():
                ema[k].lerp_(p, 1 - decay)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.update()
        bar.set_postfix(loss=f"{smooth:.4f}", edge=edge)
        if (step + 1) % every == 0 or step + 1 == total:
            done.save(
                {
                    "model": model.state_dict(),
                    "ema": ema,
                    "opts": [o.state_dict() for o in opts],
                    "step": step + 1,
                }
            )
            with open(folder / "loss.jsonl", "a") as f:
                f.write(json.dumps({"step": step + 1, "edge": edge, "loss": smooth}) + "\n")
    bar.close()
    return {k: v.cpu() for k, v in ema.items()}


def train_decoder(folder: Path, basis, seed: int, steps: int, device: str, batch: int = 24, crop: int = 64):
    """Trains TAESD's decoder to undo the fixed encoder on random crops: L1 with a term on gradients, for
    sharp edges."""
    torch.manual_seed(seed)
    net = ae.decoder().to(device)
    opt = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.0)
    done, step0 = Checkpoint(folder / "decoder.pt"), 0
    state = done.load()
    if state is not None:
        net.load_state_dict(state["net"])
        opt.load_state_dict(state["opt"])
        step0 = state["step"]
    rate = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda s: min(1, (s + step0 + 1) / 50) * max(0.02, 1 - (s + step0) / steps)
    )
    bar = tqdm(range(step0, steps), initial=step0, total=steps, desc="decoder")
    for step in bar:
        rng = np.random.default_rng([seed, 77, step])
        _, whole = drawn(rng, batch // 4, SIZE)
        z = latents_of(whole, basis)
        parts, codes = [], []
        for i in range(batch):
            y, x = (int(v) for v in rng.integers(0, (SIZE - crop) // 8 + 1, 2))
            parts.append(whole[i % len(whole), :, y * 8 : y * 8 + crop, x * 8 : x * 8 + crop])
            codes.append(z[i % len(whole), :, y : y + crop // 8, x : x + crop // 8])
        target, code = torch.stack(parts).to(device), torch.stack(codes).to(device)
        # A little noise teaches the decoder to forgive a sampler's last errors.
        code = code + torch.randn_like(code) * 0.03 * torch.rand(batch, 1, 1, 1, device=device)
        with torch.autocast(device, torch.bfloat16):
            out = net(code)
        out = out.float()
        loss = nnf.l1_loss(out, target) + nnf.mse_loss(out, target)
        for axis in (2, 3):
            loss = loss + 0.5 * nnf.l1_loss(out.diff(dim=axis), target.diff(dim=axis))
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        rate.step()
        bar.set_postfix(psnr=f"{-10 * torch.log10(nnf.mse_loss(out, target)).item():.1f}")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            done.save({"net": net.state_dict(), "opt": opt.state_dict(), "step": step + 1})
    return net.cpu()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/embedded"), help="folder for checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the safetensors files")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument(
        "--coarse", type=int, nargs=2, default=(1300, 64), metavar=("STEPS", "BATCH"), help="64-token stage"
    )
    parser.add_argument(
        "--fine", type=int, nargs=2, default=(1000, 32), metavar=("STEPS", "BATCH"), help="256-token stage"
    )
    parser.add_argument("--decoder", type=int, default=700, help="steps of the decoder")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the transformer (a C++ compiler is needed)"
    )
    parser.add_argument(
        "--only", choices=("transformer", "decoder", "judge"), help="run one stage and export nothing"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.work.mkdir(parents=True, exist_ok=True)
    basis = train_basis(args.work, args.seed)
    transformer = decoder = judge = None
    if args.only in (None, "transformer"):
        stages = ((SIZE // 2, *args.coarse), (SIZE, *args.fine))
        transformer = train_transformer(args.work, basis, args.seed, stages, args.rate, device, args.compile)
    if args.only in (None, "decoder"):
        decoder = train_decoder(args.work, basis, args.seed, args.decoder, device)
    if args.only in (None, "judge"):
        done = Checkpoint(args.work / "judge.pt")
        state = done.load()
        if state is None:
            state = train_judge(progress=lambda n: tqdm(range(n), desc="judge")).state_dict()
            done.save(state)
        judge = state
    if args.only is None:
        vae = ae.Autoencoder()
        ae.write_encoder(vae.taesd_encoder, *basis)
        vae.taesd_decoder.load_state_dict(decoder.state_dict())
        save_weights(args.out, transformer, vae.state_dict(), judge)
        log.info("Wrote %s", args.out)


if __name__ == "__main__":
    main()
