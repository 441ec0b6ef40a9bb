"""Trains the embedded picture model from nothing: `python -m demo.train_emoji`.

Downloads the emoji pictures with npm (16 MB, MIT), then trains, each part with checkpoints it resumes from:
the code of pictures and its decoder (`decoder`), the judge (`judge`), the transformer with its text encoder
(`model`). About four hours on two CPU cores, minutes on a GPU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import nn

from .blocks_vae import BlockAutoencoder, train_decoder
from .emoji import (
    CONFIG,
    GROUNDS,
    TOKENS,
    WORDS_EACH,
    EmojiSet,
    EmojiText,
    Pictures,
    download,
    draw_pictures,
    load_emoji,
    random_pictures,
    words_of,
)
from .emoji_judge import train_emoji_judge
from .flux import Flux, FluxConfig
from .store import EMOJI, EMOJI_JUDGE, EMOJI_TEXT, EMOJI_VAE, is_block_matrix, save_model, started
from .training import Checkpoint, Plan, fit, flow_loss, generator, noised, start, time_arguments


def picture_code(work: Path, emoji: EmojiSet, seed: int) -> BlockAutoencoder:
    """The autoencoder with the basis of composed pictures and an untrained decoder."""
    vae, done = BlockAutoencoder(), Checkpoint(work / "basis.pt")
    state = done.load()
    if state is None:
        gen = torch.Generator(emoji.full.device).manual_seed(seed)
        drawn = [draw_pictures(random_pictures(40, len(emoji.names), gen), emoji).cpu() for _ in range(8)]
        vae.set_basis(torch.cat(drawn))
        done.save({"weight": vae.weight.data, "bias": vae.bias.data})
    else:
        vae.weight.data, vae.bias.data = state["weight"], state["bias"]
    return vae


class TextAndFlux(nn.Module):
    """The text encoder and the transformer, trained together."""

    def __init__(self, vocabulary: list[str], config: FluxConfig = CONFIG):
        super().__init__()
        self.text, self.flux = EmojiText(vocabulary), Flux(config)
        for name, p in self.flux.named_parameters():
            if name.endswith("lin.weight") or "adaLN" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(p)


class Captions:
    """Word indices of all names, so that captions of a batch are looked up without a loop."""

    def __init__(self, text: EmojiText, names: list[str], device: str):
        parts = [[(w, 0) for w in words_of(n)] for n in names]
        self.words = text.indices(parts, device)[0][:, :WORDS_EACH]
        self.grounds = text.indices([[(g, 2)] for g in GROUNDS], device)[0][:, 0]

    def of(self, pictures: Pictures):
        """Word and phrase indices [B,TOKENS] of pictures."""
        first, second = self.words[pictures.which[:, 0]], self.words[pictures.which[:, 1]]
        second = torch.where(pictures.two[:, None], second, -1)
        ground = self.grounds[pictures.ground][:, None]
        words = torch.cat([first, second, ground, torch.full_like(ground, -1)], 1)
        phrases = torch.tensor([0] * WORDS_EACH + [1] * WORDS_EACH + [2, 2], device=words.device).expand(
            len(words), -1
        )
        assert words.shape[1] == TOKENS
        return words, phrases


def train_picture_model(
    emoji: EmojiSet,
    vae: BlockAutoencoder,
    plan: Plan,
    folder: Path,
    seed: int,
    device: str,
    batch: int,
    start_from: Path | None = None,
) -> TextAndFlux:
    """Rectified-flow training of transformer and text encoder; a tenth of the captions is dropped."""
    both = TextAndFlux(emoji.vocabulary)
    started(both.flux, start_from, EMOJI)
    started(both.text, start_from, EMOJI_TEXT)
    both.to(device)
    captions = Captions(both.text, emoji.names, device)
    vae.to(device)

    def loss_of(step: int):
        gen = generator(seed, step, device)
        with torch.no_grad():
            pictures = random_pictures(batch, len(emoji.names), gen)
            x0 = vae.encode(draw_pictures(pictures, emoji))
            noise, t, xt = noised(x0, gen)
            keep = (torch.rand(batch, generator=gen, device=device) >= 0.1).float()
        tokens, pooled = both.text(*captions.of(pictures))
        with torch.autocast(device, torch.bfloat16):
            v = both.flux(xt, t, tokens * keep[:, None, None], pooled * keep[:, None])
        return flow_loss(v, noise, x0)

    return fit(both, loss_of, plan, folder)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/emoji"), help="folder for data and checkpoints"
    )
    parser.add_argument("--seed", type=int, default=23)
    time_arguments(parser, 10800)
    parser.add_argument(
        "--side-seconds", type=float, default=1800, help="for the decoder and the judge, each"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", choices=("model", "decoder", "judge"), help="train one part")
    args = parser.parse_args(argv)
    device = start(args.seed)
    download(args.work)
    emoji = load_emoji(args.work, device)
    vae = picture_code(args.work, emoji, args.seed)
    if args.only in (None, "decoder"):
        plan = Plan(args.side_seconds, rate=1e-3, deadline=args.deadline)

        def draw(gen):
            return draw_pictures(random_pictures(max(1, args.batch // 2), len(emoji.names), gen), emoji)

        train_decoder(vae, draw, plan, args.work / "decoder", args.seed, device)
        save_model(vae, args.out / EMOJI_VAE, dtype=torch.float16)
    if args.only in (None, "judge"):
        plan = Plan(args.side_seconds, rate=2e-3, deadline=args.deadline)
        judge = train_emoji_judge(emoji, plan, args.work / "judge", args.seed, device)
        names = {"names": json.dumps(emoji.names)}
        save_model(judge, args.out / EMOJI_JUDGE, dtype=torch.float16, metadata=names)
    if args.only in (None, "model"):
        plan = Plan(args.seconds, rate=args.rate or 2e-3, float8=is_block_matrix, deadline=args.deadline)
        folder = args.work / "model"
        both = train_picture_model(emoji, vae, plan, folder, args.seed, device, args.batch, args.start_from)
        save_model(both.flux, args.out / EMOJI, is_block_matrix)
        words = {"vocabulary": json.dumps(both.text.vocabulary)}
        save_model(both.text, args.out / EMOJI_TEXT, dtype=torch.float16, metadata=words)


if __name__ == "__main__":
    main()
