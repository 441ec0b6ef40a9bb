"""How well the embedded model draws what it is told: `python -m demo.evaluate`.

Samples 64 captions without a cache (30 Euler steps), lets the judge read shape and colour off the pictures,
and does the same with pictures straight from the generator, which shows how far the judge itself can be
trusted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .judge import read_right
from .run import decode
from .sampler import sample
from .scenes import caption_of, draw_scene, random_scene
from .weights import WEIGHTS, load_autoencoder, load_judge, load_transformer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=WEIGHTS / "accuracy.json")
    args = parser.parse_args()
    model, autoencoder, judge = load_transformer(), load_autoencoder(), load_judge()
    rng = np.random.default_rng(4096)
    scenes = [random_scene(rng) for _ in range(args.pictures)]
    right, wrong = 0, []
    for first in tqdm(range(0, args.pictures, args.batch)):
        some = scenes[first : first + args.batch]
        out = sample(
            model,
            [caption_of(s) for s in some],
            steps=args.steps,
            guidance=args.guidance,
            seeds=range(first, first + len(some)),
        )
        read = read_right(judge, decode(autoencoder, out.latents), some)
        right += sum(read)
        wrong += [caption_of(s) for s, ok in zip(some, read) if not ok]
    drawn = torch.from_numpy(np.stack([draw_scene(s) for s in scenes])).permute(0, 3, 1, 2)
    own = sum(read_right(judge, drawn, scenes))
    result = {
        "pictures": args.pictures,
        "steps": args.steps,
        "guidance": args.guidance,
        "sampler": "euler",
        "read_right": right,
        "generator_read_right": own,
        "misread": wrong,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"Shape and colour read right, at the place told: {right} of {args.pictures} sampled, {own} of "
        f"{args.pictures} drawn pictures."
    )


if __name__ == "__main__":
    main()
