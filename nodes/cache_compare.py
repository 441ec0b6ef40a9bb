"""Cache Compare: the same picture uncached, cached, and with fewer steps in the cached run's time, side by
side and in numbers."""

from __future__ import annotations

import json
import logging

import torch
from comfy_api.latest import io

from ..cache_core.recipes import from_preset
from ..cache_core.report import run_report
from ..cache_core.report.comparison import Comparison, Way, closeness, difference_maps
from . import sheets
from .comfy import events, executing, failures, loading, output_files, requests
from .comfy.report_box import no_report, nothing_sampled
from .compare_sampling import CACHED, CALLS, FEWER, NONE, SECONDS, UNCACHED, sampled
from .types import CATEGORY, Report, advanced, optional, sampler_inputs

log = logging.getLogger("dual_cache")
AUTO, VIDEO, PICTURES = "from the latent", "video", "pictures"
SHOWN = 8
"""Pictures or frames at most that the node shows."""


def _finished(name: str, what: str) -> io.Input:
    """The input of finished pictures."""
    return io.MultiType.Input(
        name,
        types=[io.Image, io.Latent],
        optional=True,
        tooltip=f"Finished {what}, as images or latents. With uncached and cached, nothing is sampled.",
    )


def _inputs() -> list[io.Input]:
    return [
        *optional(
            io.Model.Input("model", optional=True, tooltip="A model patched by Dual Cache."),
            io.Vae.Input("vae", optional=True, tooltip="Decodes the latents."),
            io.Conditioning.Input("positive", optional=True, tooltip="What the picture should show."),
            io.Conditioning.Input("negative", optional=True, tooltip="What it should not show."),
            io.Latent.Input("latent_image", optional=True, tooltip="The latent to start from."),
            *sampler_inputs("Steps of the uncached and of the cached run."),
            io.Float.Input(
                "denoise",
                default=1.0,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Below 1 keeps part of the given latent.",
            ),
            io.Combo.Input(
                "fewer_from",
                options=[SECONDS, CALLS, NONE],
                default=SECONDS,
                tooltip="How many steps the run with fewer steps gets: as many as fit into the cached "
                "run's measured seconds, or as many as its full model calls; or no such run.",
            ),
            io.Int.Input(
                "repeats",
                default=1,
                min=1,
                max=9,
                tooltip="Runs of each kind, one after the other in turn; seconds are their median.",
            ),
            _finished("uncached", "uncached pictures"),
            _finished("cached", "cached pictures"),
            _finished("fewer_steps", "pictures of fewer steps"),
            advanced(
                io.Combo.Input(
                    "batch",
                    options=[AUTO, PICTURES, VIDEO],
                    default=AUTO,
                    tooltip="Whether several pictures are frames of a video; latents with a time axis "
                    "always are.",
                )
            ),
        ),
    ]


class CacheCompare(io.ComfyNode):
    """Samples uncached, cached and with fewer steps, or takes what is finished, and measures how close they
    are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CacheCompare",
            display_name="Cache Compare",
            category=CATEGORY,
            description="Samples one picture uncached, cached, and with fewer steps in the time of the "
            "cached run; shows them side by side with their closeness, calls and seconds.",
            inputs=_inputs(),
            outputs=[
                io.Image.Output(
                    display_name="sheet", tooltip="Pictures, differences and the table as one picture."
                ),
                io.String.Output(display_name="json", tooltip="All numbers, with the cached run's report."),
                Report.Output(display_name="report", tooltip="The cached run's report, for Cache Report."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model=None,
        vae=None,
        positive=None,
        negative=None,
        latent_image=None,
        seed=0,
        steps=30,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        fewer_from=SECONDS,
        repeats=1,
        uncached=None,
        cached=None,
        fewer_steps=None,
        batch=AUTO,
    ) -> io.NodeOutput:
        finished = {UNCACHED: uncached, CACHED: cached, FEWER: fewer_steps}
        given = {name: value for name, value in finished.items() if value is not None}
        needed = dict(model=model, vae=vae, positive=positive, negative=negative, latent_image=latent_image)
        wrong = _wrong(given, needed)
        if wrong:
            return told(wrong, executing.display_id(cls.hidden.unique_id))
        if given:
            made, results = Comparison([Way(name) for name in given]), given
        else:
            options = dict(
                seed=seed,
                cfg=cfg,
                sampler_name=sampler_name,
                scheduler=scheduler,
                positive=positive,
                negative=negative,
                latent=latent_image,
                denoise=denoise,
            )
            made, results = sampled(model, steps, repeats, fewer_from, options)
        try:
            pixels = {}
            for way in made.ways:
                pixels[way.name], way.not_finite = _pixels(results[way.name], vae)
            clips = 0 if batch == PICTURES else max(map(_clips, results.values())) or int(batch == VIDEO)
            return shown(made, pixels, clips)
        except Exception as error:  # what was sampled is not lost for what only shows it
            return told(failures.sentence_of(error), executing.display_id(cls.hidden.unique_id), made.report)


def _wrong(given: dict, needed: dict) -> str | None:
    """Why the inputs cannot be compared, or None.

    given: finished pictures by name. needed: what sampling needs, by input."""
    if given:
        if {UNCACHED, CACHED} <= set(given):
            return None
        return (
            "Cache Compare needs both uncached and cached to compare finished pictures; leave all three "
            "empty to sample."
        )
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        return (
            f"Cache Compare needs {', '.join(missing)} to sample, or finished pictures at uncached "
            "and cached."
        )
    if not isinstance(requests.request_of(needed["model"]), requests.CacheRequest):
        return (
            "Cache Compare needs a model that Dual Cache has patched; connect one, or take that node out of "
            "bypass."
        )
    return None


def told(sentence: str, node_id: str | None, report: run_report.Report | None = None) -> io.NodeOutput:
    """What the node gives where nothing can be compared: the sentence. report: of the cached run, if any."""
    events.show(sentence, node_id)
    log.warning("Cache Compare: %s", sentence)
    data = json.dumps({"kind": "no_comparison", "message": sentence})
    sheet = output_files.as_image(sheets.sentence_sheet(sentence))
    return io.NodeOutput(sheet, data, report or no_report(sentence), ui={"text": [sentence]})


def _clips(result) -> int:
    """How many videos a LATENT holds; 0 without a time axis, and for an IMAGE."""
    samples = result.get("samples") if isinstance(result, dict) else None
    if samples is not None and getattr(
        samples, "is_nested", False
    ):  # video with its sound, as LTX-2 has it: the video stands first, and the VAE decodes that one
        samples = samples.unbind()[0]
    return (
        samples.shape[0]
        if isinstance(samples, torch.Tensor) and samples.ndim == 5 and samples.shape[2] > 1
        else 0
    )


def _pixels(result, vae) -> tuple[torch.Tensor, list[int]]:
    """Pictures [B,3,H,W] in 0..1 of an IMAGE or a LATENT, and which of them hold values that are not finite;
    those values are black."""
    if isinstance(result, dict):
        if vae is None:
            raise ValueError("Cache Compare needs a vae to decode latents.")
        result = loading.decode(vae, result)
    pictures = result[..., :3].detach().float().cpu().movedim(-1, 1)
    finite = pictures.isfinite()
    return pictures.where(finite, 0).clamp(0, 1), (~finite.all(3).all(2).all(1)).nonzero().flatten().tolist()


def shown(made: Comparison, pixels: dict[str, torch.Tensor], clips: int) -> io.NodeOutput:
    """Measures the pictures, draws the sheet and leaves what the node shows in ComfyUI's temporary folder.

    clips: of how many videos the pictures are the frames.
    """
    made.video = clips > 0
    reference, others = pixels[UNCACHED], [pixels[way.name] for way in made.ways[1:]]
    for way, other in zip(made.ways[1:], others):
        if other.shape != reference.shape:
            raise ValueError(
                f"The pictures of {way.name} are {_size(other)}, those of {UNCACHED} {_size(reference)}; "
                "only equal sizes can "
                "be compared."
            )
        if not made.unmeasured(way):
            way.closeness = closeness(reference, other, clips)
    made.notes += [_broken(way, len(reference)) for way in made.ways if way.not_finite]
    if any(way.closeness and way.closeness["lpips"] is None for way in made.ways):
        made.notes.append(
            "LPIPS is left out: the package lpips or its AlexNet weights are not on this machine, and "
            "nothing is downloaded."
        )
    maps, scale = difference_maps(reference, others)
    worst = (
        made.ways[1].closeness["worst"]
        if made.ways[1].closeness
        else [*made.ways[1].not_finite, *made.ways[0].not_finite][0]
    )
    frames = _frames(len(reference), worst)
    pictures = [[output_files.as_picture(p[i].movedim(0, -1)) for i in frames] for p in (reference, *others)]
    heat = [[output_files.as_picture(sheets.heat(m[i])) for i in frames] for m in maps]
    at = frames.index(worst)
    which = (
        f"{'frame' if made.video else 'picture'} {worst + 1} of {len(reference)}"
        if len(reference) > 1
        else ""
    )
    sheet = sheets.comparison_sheet(made, [p[at] for p in pictures], [m[at] for m in heat], scale, which)
    files = {
        "frames": frames,
        "count": len(reference),
        "first": at,
        "scale": scale,
        "pictures": [output_files.show(p, "compare") for p in pictures],
        "maps": [output_files.show(m, "difference") for m in heat],
    }
    data = made.to_json()
    view = {
        key: value for key, value in made.to_dict().items() if key != "report"
    }  # the browser has it from the run
    drawn = json.dumps({**view, "table": made.table(), "shown": files}, allow_nan=False)
    report = made.report or nothing_sampled(from_preset("off"))
    return io.NodeOutput(output_files.as_image(sheet), data, report, ui={"dual_cache_compare": [drawn]})


def _frames(count: int, worst: int) -> list[int]:
    """Which of `count` pictures are shown: evenly spaced ones and the worst."""
    spaced = (
        {round(i * (count - 1) / max(1, SHOWN - 2)) for i in range(min(count, SHOWN - 1))}
        if count > SHOWN
        else set(range(count))
    )
    return sorted({*spaced, worst})


def _broken(way: Way, count: int) -> str:
    """What is said of a way whose pictures cannot be measured."""
    which = (
        f"{len(way.not_finite)} of {count} pictures of {way.name} hold"
        if count > 1
        else f"The picture of {way.name} holds"
    )
    measured = (
        "nothing can be measured against them" if way.name == UNCACHED else "its closeness is not available"
    )
    return f"{which} values that are not finite, NaN for one; they are drawn black, and {measured}."


def _size(pictures: torch.Tensor) -> str:
    return f"{len(pictures)} of {pictures.shape[3]} x {pictures.shape[2]} pixels"
