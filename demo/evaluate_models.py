"""How well the further embedded models draw what they are told: `python -m demo.evaluate_models`.

Samples each model without a cache, lets its judge read the results, and does the same with pictures straight
from the generator, which shows how far the judge itself can be trusted. Writes numbers to a JSON file and
sheets of pictures to a folder."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf

from . import samplers
from .blocks_vae import psnr_of
from .clip_judge import read_clips
from .clips import draw_clips, random_clips
from .edit import CHANGES, random_edits
from .emoji import Pictures, draw_pictures, load_emoji, random_pictures
from .emoji_judge import read_pictures
from .judge import labels_of, read_right
from .render import draw_stills, random_stills
from .sampler import sample
from .scenes import caption_of
from .training import device_name
from .weights import WEIGHTS, load_autoencoder, load_judge

SEED = 4096
DEVICE = device_name()


def in_batches(count: int, batch: int, run) -> torch.Tensor:
    """Concatenates run(first, last) over a count."""
    return torch.cat([run(i, min(i + batch, count)) for i in range(0, count, batch)])


def sheet(pictures: torch.Tensor, path: Path, columns: int = 8) -> None:
    """Writes pictures [B,3,h,w] as one JPEG."""
    from PIL import Image

    columns = min(columns, len(pictures))
    pictures = pictures[: len(pictures) // columns * columns]
    b, c, h, w = pictures.shape
    rows = pictures.view(b // columns, columns, c, h, w).permute(0, 3, 1, 4, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = (rows.reshape(b // columns * h, columns * w, c) * 255).round().byte().numpy()
    Image.fromarray(grid).save(path, quality=92)


def share(flags: torch.Tensor) -> float | None:
    """The share of true flags; None of none."""
    return round(flags.float().mean().item(), 4) if len(flags) else None


def video(count: int, steps: int, batch: int, folder: Path, guidance: float = 5.0) -> dict:
    """Clips: what the judge reads right of sampled and of drawn clips."""
    model, vae = (m.to(DEVICE) for m in samplers.load_video())
    judge = samplers.load_clip_judge()
    clips = random_clips(count, torch.Generator().manual_seed(SEED))

    def run(a, b):
        captions = [clips.caption(i) for i in range(a, b)]
        out = samplers.sample_clips(model, captions, steps=steps, seeds=range(a, b), guidance=guidance)
        return samplers.decode_clips(vae, out.latents).cpu()

    shown, drawn = in_batches(count, batch, run), draw_clips(clips)
    read, own = read_clips(judge, shown, clips), read_clips(judge, drawn, clips)
    sheet(shown[:16].flatten(0, 1), folder / "video.jpg", 10)
    return {
        "clips": count,
        "steps": steps,
        "guidance": guidance,
        "read_right": {k: share(v) for k, v in read.items()},
        "generator_read_right": {k: share(v) for k, v in own.items()},
        "autoencoder_psnr_db": round(psnr_of(vae, drawn[:16].flatten(0, 1).to(DEVICE)), 2),
        "misread": [clips.caption(i) for i in range(count) if not read["told"][i]],
    }


def _small(pictures: torch.Tensor) -> torch.Tensor:
    return nnf.interpolate(pictures, (64, 64), mode="area").flatten(1)


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Root-mean-square distances of rows [B,n] to rows [N,n]."""
    return torch.cdist(a, b) / a.shape[1] ** 0.5


def _neighbours(shown, pictures, emoji) -> dict:
    """Distances of single-emoji pictures to every emoji in its middle pose on the same ground."""
    told, near, right, own = [], [], [], []
    single, count, device = (~pictures.two).nonzero()[:, 0], len(emoji.names), shown.device
    for ground in pictures.ground[single].unique():
        rows = single[pictures.ground[single] == ground]
        pose = Pictures(
            which=torch.arange(count, device=device)[:, None].expand(-1, 2),
            two=torch.zeros(count, dtype=torch.bool, device=device),
            ground=ground.expand(count),
            shift=torch.zeros(count, 2, 2, device=device),
            scale=torch.zeros(count, 2, device=device),
        )
        training = in_batches(count, 64, lambda a, b, p=pose: _small(draw_pictures(_part(p, a, b), emoji)))
        d, which = _distances(_small(shown[rows]), training), pictures.which[rows, 0]
        row = torch.arange(len(rows), device=device)
        told += d[row, which].tolist()
        near += d.min(1).values.tolist()
        right += (d.argmin(1) == which).tolist()
        between = _distances(training[which], training)
        between[row, which] = math.inf
        own += between.min(1).values.tolist()
    return {
        "nearest_is_the_told_one": round(float(np.mean(right)), 4),
        "rms_to_the_told_one_median": round(float(np.median(told)), 4),
        "rms_to_the_nearest_median": round(float(np.median(near)), 4),
        "rms_to_the_nearest_least": round(float(np.min(near)), 4),
        "rms_from_the_told_one_to_its_nearest_other_median": round(float(np.median(own)), 4),
    }


def _part(pictures: Pictures, a: int, b: int) -> Pictures:
    return Pictures(*(getattr(pictures, f)[a:b] for f in pictures.__dataclass_fields__))


def _on(pictures: Pictures, device: str) -> Pictures:
    return Pictures(*(getattr(pictures, f).to(device) for f in pictures.__dataclass_fields__))


def emoji(count: int, steps: int, batch: int, folder: Path, data: Path, guidance: float = 3.0) -> dict:
    """Emoji pictures: what the judge names, and how near they are to the training pictures."""
    model, text, vae = samplers.load_emoji_model()
    model, vae = model.to(DEVICE), vae.to(DEVICE)
    judge, names = samplers.load_emoji_judge()
    pictures = random_pictures(count, len(names), torch.Generator().manual_seed(SEED))

    def run(a, b):
        captions = [pictures.caption(i, names) for i in range(a, b)]
        out = samplers.sample_emoji(model, text, captions, steps=steps, seeds=range(a, b), guidance=guidance)
        with torch.no_grad():
            return vae.decode(out.latents).cpu()

    source, here = load_emoji(data, DEVICE), _on(pictures, DEVICE)
    shown, drawn = in_batches(count, batch, run), draw_pictures(here, source).cpu()
    result = {"pictures": count, "steps": steps, "guidance": guidance}
    for name, some in (("read_right", shown), ("generator_read_right", drawn)):
        first, ground = read_pictures(judge, some, pictures)
        five, _ = read_pictures(judge, some, pictures, 5)
        result[name] = {"emoji": share(first), "emoji_among_5": share(five), "ground": share(ground)}
        result[name]["single"] = share(first[~pictures.two])
        result[name]["pair"] = share(first[pictures.two])
    sheet(shown, folder / "emoji.jpg")
    sheet(drawn, folder / "emoji_drawn.jpg")
    result["autoencoder_psnr_db"] = round(psnr_of(vae, drawn[:32].to(DEVICE)), 2)
    result["neighbours"] = _neighbours(shown.to(DEVICE), here, source)
    result["captions"] = [pictures.caption(i, names) for i in range(count)]
    return result


def edit(count: int, steps: int, batch: int, folder: Path, guidance: float = 2.0) -> dict:
    """Edits: whether the judge reads the edited scene, all nine places, and how near the picture is."""
    model, vae, judge = samplers.load_edit().to(DEVICE), load_autoencoder().to(DEVICE), load_judge()
    gen = torch.Generator().manual_seed(SEED)
    edits = random_edits(random_stills(count, gen), gen)
    before, after = draw_stills(edits.before), draw_stills(edits.after)
    with torch.no_grad():
        references = in_batches(count, batch, lambda a, b: vae.encode(before[a:b].to(DEVICE)))

    def run(a, b):
        told = [edits.instruction(i) for i in range(a, b)]
        out = samplers.sample_edits(
            model, references[a:b], told, steps=steps, seeds=range(a, b), guidance=guidance
        )
        with torch.no_grad():
            return vae.decode(out.latents).cpu()

    shown = in_batches(count, batch, run)
    scenes = [edits.after.scene(i) for i in range(count)]

    def exact(pictures):
        """Whether all nine places are read as the scene has them, the empty ones too."""
        read = [v.argmax(1) for v in judge(pictures)]
        told = [torch.stack(v) for v in zip(*(labels_of(s) for s in scenes))]
        return ((read[0] == told[0]) & ((read[1] == told[1]) | (told[0] == 0))).flatten(1).all(1)

    def psnr(a, b):
        return -10 * (a - b).square().mean((1, 2, 3)).log10()

    with torch.no_grad():
        right, own = exact(shown), exact(after)
        rebuilt = in_batches(count, batch, lambda a, b: vae.decode(vae.encode(after[a:b].to(DEVICE))).cpu())
    sheet(torch.stack([before, shown, after], 1)[:24].flatten(0, 1), folder / "edit.jpg", 12)
    return {
        "edits": count,
        "steps": steps,
        "guidance": guidance,
        "read_right": share(right),
        "generator_read_right": share(own),
        "by_change": {c: share(right[edits.change == k]) for k, c in enumerate(CHANGES)},
        "psnr_to_expected_db": round(psnr(shown, after).median().item(), 2),
        "psnr_of_reference_to_expected_db": round(psnr(before, after).median().item(), 2),
        "psnr_of_autoencoder_db": round(psnr(rebuilt, after).median().item(), 2),
    }


def variant(name: str, count: int, steps: int, batch: int, folder: Path, guidance: float = 2.0) -> dict:
    """The long-skip variant and its twin: captions, read as the embedded model's are."""
    model = {"skip": samplers.load_skip, "no_skip": samplers.load_no_skip}[name]().to(DEVICE)
    vae, judge = load_autoencoder().to(DEVICE), load_judge()
    stills = random_stills(count, torch.Generator().manual_seed(SEED))
    scenes = [stills.scene(i) for i in range(count)]

    def run(a, b):
        captions = [caption_of(s) for s in scenes[a:b]]
        out = sample(model, captions, steps=steps, seeds=range(a, b), guidance=guidance)
        with torch.no_grad():
            return vae.decode(out.latents).cpu()

    shown = in_batches(count, batch, run)
    sheet(shown, folder / f"{name}.jpg")
    return {
        "pictures": count,
        "steps": steps,
        "guidance": guidance,
        "read_right": sum(read_right(judge, shown, scenes)) / count,
        "generator_read_right": sum(read_right(judge, draw_stills(stills), scenes)) / count,
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["video", "emoji", "edit", "skip", "no_skip"])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, help="instead of the model's own")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sheets", type=Path, default=Path("runs/sheets"))
    parser.add_argument("--data", type=Path, default=Path("runs/emoji"), help="folder of emoji.npz")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "accuracy_models.json")
    args = parser.parse_args(argv)
    found = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    for name in args.models:
        more = {"guidance": args.guidance} if args.guidance else {}
        common = (args.pictures, args.steps, args.batch, args.sheets)
        if name == "emoji":
            found[name] = emoji(*common, args.data, **more)
        elif name in ("skip", "no_skip"):
            found[name] = variant(name, *common, **more)
        else:
            found[name] = {"video": video, "edit": edit}[name](*common, **more)
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps({k: v for k, v in found[name].items() if k not in ("captions", "misread")}))


if __name__ == "__main__":
    main()
