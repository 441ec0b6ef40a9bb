"""Trains the variants of the embedded model: `python -m demo.train_stills edit` fine-tunes it to follow a
reference picture, `skip` and `no_skip` train the variant with long skips and its twin from nothing.

A variant takes about two hours on two CPU cores, minutes on a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .blocks_vae import BlockAutoencoder, basis_of_embedded
from .edit import FluxEdit, encode_edits, random_edits
from .flux import Flux
from .render import draw_stills, encode_stills, random_stills
from .scenes import SIZE
from .skip import SkipConfig, SkipFlux
from .store import EDIT, NO_SKIP, SKIP, is_block_matrix, load_model, save_model, started
from .training import Plan, fit, flow_loss, generator, noised, start, time_arguments
from .weights import MODEL, load_autoencoder

COARSE = 0.45
"""Share of a training from nothing that runs on pictures of half the size (64 tokens), as the embedded model
began."""
FILES = {"edit": EDIT, "skip": SKIP, "no_skip": NO_SKIP}


def embedded_code(device: str) -> BlockAutoencoder:
    """The embedded autoencoder's encoder as one matrix product."""
    code = BlockAutoencoder()
    code.weight.data, code.bias.data = basis_of_embedded(load_autoencoder())
    return code.to(device)


def new_model(name: str) -> torch.nn.Module:
    """An untrained variant; `edit` starts from the embedded model's weights."""
    if name == "edit":
        return load_model(FluxEdit(), MODEL, "demo.train").train().requires_grad_(True)
    plain = Flux(SkipConfig()) if name == "no_skip" else SkipFlux()
    for key, p in plain.named_parameters():
        if key.endswith("lin.weight") or "adaLN" in key or key.startswith("final_layer.linear"):
            torch.nn.init.zeros_(p)
    return plain


def edit_loss(model, code, gen, batch: int, device: str, size: int = SIZE):
    """Loss of one batch of edits; a tenth of the instructions is dropped, for guidance."""
    with torch.no_grad():
        edits = random_edits(random_stills(batch, gen), gen)
        reference = code.encode(draw_stills(edits.before, size))
        x0 = code.encode(draw_stills(edits.after, size))
        keep = (torch.rand(batch, generator=gen, device=device) >= 0.1).float()
        tokens, pooled = encode_edits(edits)
        tokens, pooled = tokens * keep[:, None, None], pooled * keep[:, None]
        noise, t, xt = noised(x0, gen)
    with torch.autocast(device, torch.bfloat16):
        v = model(xt, t, tokens, pooled, reference, grid_step=SIZE / size)
    return flow_loss(v, noise, x0)


def still_loss(model, code, gen, batch: int, device: str, size: int = SIZE):
    """Loss of one batch of scenes; a tenth of the captions is dropped."""
    with torch.no_grad():
        stills = random_stills(batch, gen)
        x0 = code.encode(draw_stills(stills, size))
        keep = (torch.rand(batch, generator=gen, device=device) >= 0.1).float()
        tokens, pooled = encode_stills(stills)
        tokens, pooled = tokens * keep[:, None, None], pooled * keep[:, None]
        noise, t, xt = noised(x0, gen)
    with torch.autocast(device, torch.bfloat16):
        v = model(xt, t, tokens, pooled, grid_step=SIZE / size)
    return flow_loss(v, noise, x0)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variant", choices=tuple(FILES))
    parser.add_argument("--work", type=Path, default=Path("runs"), help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=21)
    time_arguments(parser, 7200)
    parser.add_argument("--steps", type=int, default=4000, help="at most so many steps")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args(argv)
    device = start(args.seed)
    code = embedded_code(device)
    model = started(new_model(args.variant), args.start_from, FILES[args.variant]).to(device)
    coarse, loss = (COARSE, still_loss) if args.variant != "edit" else (0.0, edit_loss)
    rate = args.rate or (2e-3 if coarse else 1e-3)
    coarse = coarse if args.start_from is None else 0.0
    plan = Plan(args.seconds, args.steps, rate, float8=is_block_matrix, deadline=args.deadline)

    def loss_of(step: int):
        small = step < coarse * args.steps
        gen = generator(args.seed, step, device)
        return loss(model, code, gen, args.batch * (2 if small else 1), device, SIZE // (2 if small else 1))

    fit(model, loss_of, plan, args.work / args.variant)
    save_model(model, args.out / FILES[args.variant], is_block_matrix)


if __name__ == "__main__":
    main()
