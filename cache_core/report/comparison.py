"""Ways of sampling the same picture side by side: what each took, how close it came to the uncached one, and
where it differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

import torch

from ..base.json_values import finite
from .metrics import WINDOW, lpips, psnr, ssim
from .run_report import Report

FORMAT, KIND = 1, "cache_comparison"
SCATTER = 1.15
"""How many times longer or shorter than another run one may take that is to take the same time."""
SMALLEST = 64
"""Edge in pixels below which LPIPS' network has nothing left to look at."""
PSNR = 5
"""First column of the table that comes from closeness; so do all behind it."""
LEAST_SCALE = 1 / 64
"""Smallest difference that a map shows at full brightness, so that equal pictures do not glow with
rounding."""


@dataclass
class Way:
    """One way of sampling. steps, calls, full_calls: as counted, None for finished pictures. seconds: of each
    repetition.

    closeness: to the uncached pictures, as `closeness` gives it; None for those themselves, and where it
        cannot be measured.
    not_finite: indices of the pictures that held values that are not finite.
    """

    name: str
    steps: int | None = None
    calls: int | None = None
    full_calls: int | None = None
    seconds: list[float] = field(default_factory=list)
    closeness: dict | None = None
    not_finite: list[int] = field(default_factory=list)

    @property
    def usual_seconds(self) -> float | None:
        """Median of the repetitions."""
        return median(self.seconds) if self.seconds else None


@dataclass
class Comparison:
    """Several ways, the uncached one first. video: whether the pictures are frames. notes: sentences.
    settings: of the sampler.

    report: of the cached run.
    """

    ways: list[Way]
    video: bool = False
    notes: list[str] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    report: Report | None = None

    def unmeasured(self, way: Way) -> bool:
        """Whether the way has no closeness because its pictures, or those to compare with, hold values that
        are not finite."""
        first = self.ways[0]
        return way is not first and bool(way.not_finite or first.not_finite)

    def to_dict(self) -> dict:
        """Plain data for JSON; numbers that are not finite become strings, as in a report."""
        ways = [{**asdict(w), "median_seconds": w.usual_seconds} for w in self.ways]
        return finite(
            {
                "format": FORMAT,
                "kind": KIND,
                "video": self.video,
                "ways": ways,
                "notes": self.notes,
                "settings": self.settings,
                "report": self.report and self.report.to_dict(),
            }
        )

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), allow_nan=False)

    def table(self) -> list[list[str]]:
        """Heading and one row per way, as text; columns that nobody fills are left out. What cannot be
        measured is n/a."""
        unit = "frame" if self.video else "picture"
        several = any(w.closeness and w.closeness["count"] > 1 for w in self.ways)
        rows = [
            [
                "",
                "steps",
                "calls",
                "in full",
                "seconds",
                "PSNR dB",
                "SSIM",
                "LPIPS",
                f"worst {unit}",
                "temporal",
            ]
        ]
        for w in self.ways:
            c = w.closeness or {}
            worst = f"{c['worst'] + 1}: {_figure(c['psnr_worst'], '.1f')} dB" if c and several else ""
            seconds = "" if w.usual_seconds is None else f"{w.usual_seconds:.2f}"
            rows.append(
                [
                    w.name,
                    *("" if n is None else str(n) for n in (w.steps, w.calls, w.full_calls)),
                    seconds,
                    _figure(c.get("psnr"), ".1f"),
                    _figure(c.get("ssim"), ".4f"),
                    _figure(c.get("lpips"), ".4f"),
                    worst,
                    _figure(c.get("temporal_difference"), ".4f"),
                ]
            )
            if self.unmeasured(w):
                rows[-1][PSNR:] = ["n/a"] * len(rows[-1][PSNR:])
        used = [
            i
            for i in range(len(rows[0]))
            if i == 0 or any(row[i] and (i == PSNR or row[i] != "n/a") for row in rows[1:])
        ]
        return [[row[i] for i in used] for row in rows]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def closeness(reference: torch.Tensor, pictures: torch.Tensor, clips: int = 0) -> dict:
    """How close pictures [B,3,H,W] in 0..1 come to the reference ones of that shape. clips: of how many
    videos they are the frames.

    psnr in dB, ssim, lpips: medians over the batch, and their worst values; ssim and lpips are None where
        they cannot be had. worst: index of the picture with the lowest PSNR. temporal_difference: of video,
        else None. ValueError names what does not fit."""
    each = psnr(reference, pictures)
    worst = min(range(len(each)), key=each.__getitem__)
    found = {"count": len(each), "psnr": median(each), "psnr_worst": each[worst], "worst": worst}
    likeness = None
    if min(reference.shape[-2:]) >= WINDOW:  # one picture at a time: SSIM works in double precision
        likeness = [ssim(a[None], b[None])[0] for a, b in zip(reference, pictures)]
    distance = _apart(reference, pictures)
    found |= {
        "ssim": likeness and median(likeness),
        "ssim_worst": likeness and min(likeness),
        "lpips": distance and median(distance),
        "lpips_worst": distance and max(distance),
    }
    return {
        **found,
        "temporal_difference": temporal_difference(reference, pictures, clips)
        if clips and len(each) > clips
        else None,
    }


def _apart(reference: torch.Tensor, pictures: torch.Tensor) -> list[float] | None:
    """LPIPS of each pair, a few at a time, or None."""
    if min(reference.shape[-2:]) < SMALLEST:
        return None
    found = [lpips(a, b) for a, b in zip(reference.split(8), pictures.split(8))]
    parts = [part for part in found if part is not None]
    return [x for part in parts for x in part] if len(parts) == len(found) else None


def temporal_difference(reference: torch.Tensor, frames: torch.Tensor, clips: int = 1) -> float:
    """Mean absolute difference between the changes from frame to frame of two videos [T,3,H,W] in 0..1; 0
    where they move alike.

    clips: of how many videos of one length they are the frames.
    """
    a, b = (x.unflatten(0, (clips, -1)).diff(dim=1) for x in (reference, frames))
    return (a - b).abs().mean().item()


def difference_maps(
    reference: torch.Tensor, others: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], float]:
    """Mean absolute difference over the channels of pictures [B,3,H,W], as maps [B,H,W] in 0..1 on one scale,
    and the difference at 1."""
    maps = [(other - reference).abs().mean(1) for other in others]
    scale = max([LEAST_SCALE, *(m.max().item() for m in maps)])
    return [m / scale for m in maps], scale


def far_apart(seconds: float, others: float) -> bool:
    """Whether a run that was to take the time of another took another one."""
    return not 1 / SCATTER <= seconds / max(others, 1e-9) <= SCATTER


def steps_in(share: float, steps: int) -> int:
    """Steps that fit into a share of the work of `steps`: at least one, at most all."""
    return max(1, min(steps, round(share * steps)))
