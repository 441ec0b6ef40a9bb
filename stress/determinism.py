"""The same seed gives the same picture, again and in another process, and a saved picture tells all that is
needed to make it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, partial

from . import fresh  # before all of ComfyUI

import torch  # isort: skip

from cache_core.recipes import preset_names  # isort: skip

from .rows import Deadline, Row, tried  # isort: skip
from .server import Server, node, pictures, same, serving  # isort: skip

STEPS = {"steps": 8, "cfg": 2.0, "seed": 3}
RUNS = {
    f"{preset}, {sampler}": {"preset": preset, "sampler": sampler, **STEPS}
    for preset, sampler in (
        ("balanced", "euler"),
        ("duca", "euler"),
        ("toca", "euler"),
        ("adaptive", "euler"),
        ("dicache", "euler"),
        ("hyca", "euler"),
        ("balanced", "dpmpp_sde"),
        ("duca", "heun"),
        ("spectrum", "dpmpp_2m"),
    )
}


@cache
def elsewhere(names: tuple[str, ...]) -> dict:
    """Runs in another process, the last first."""
    return dict(zip(reversed(names), fresh.latents([RUNS[name] for name in reversed(names)])))


def again(name: str, among: tuple[str, ...]) -> Row:
    """Twice here and once elsewhere, with the global random state and the thread's history changed in
    between."""
    first = fresh.run(RUNS[name])
    torch.rand(17)
    wrong = [] if torch.equal(first, fresh.run(RUNS[name])) else ["another result in the same process"]
    if not torch.equal(first, elsewhere(among)[name]):
        wrong.append("another result in another process")
    return Row(name, not wrong, "; ".join(wrong) or "equal twice here and in another process")


# --- from a picture's metadata --------------------------------------------------------------------

SAMPLED = (
    "seed",
    "steps",
    "cfg",
    "sampler_name",
    "scheduler",
    "positive",
    "negative",
    "latent_image",
    "denoise",
)
KEPT = {name: {"preset": name} for name in preset_names() if name != "off"}
KEPT["tokens of a seed"] = {
    "preset": "toca",
    "patch": {
        "score": "stratified random",
        "ratio": 0.3,
        "staleness": 0.5,
        "spatial_bonus": 0.1,
        "text_ratio": 0.5,
        "attention": "live",
        "seed": 7,
    },
}
KEPT["planned, with a profile"] = {"preset": "planned", "steps": 30, "size": 256}
KEPT["a schedule by hand"] = {"preset": "duca", "kinds": "FFCACFCA"}
"""Every preset, and what nodes set beside one."""


def graph(preset: str, patch: dict | None = None, kinds: str = "", steps: int = 8, size: int = 64) -> dict:
    """A run through Dual Cache Sampler that saves its picture."""
    sampling = {
        "seed": 23,
        "steps": steps,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    made = {
        "1": node("DualCacheDemoModel"),
        "2": node("DualCacheDemoCaption", caption="a small star left on a plain background"),
        "3": node("DualCacheDemoCaption", caption=""),
        "4": node("EmptySD3LatentImage", width=size, height=size, batch_size=1),
        "5": node(
            "DualCacheSampler",
            model=["1", 0],
            preset=preset,
            forecast="from preset",
            gain=0.9,
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
            **sampling,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 1]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="kept"),
    }
    if patch:
        made["8"] = node("VCacheAttentionPatch", model=["1", 0], **patch)
        made["5"]["inputs"]["model"] = ["8", 0]
    if kinds:
        made["9"] = node(
            "CacheScheduleBuilder",
            preset="custom",
            steps=len(kinds),
            interval=3,
            pattern="aggressive only",
            ratio=0.3,
            warmup=1,
            tail=0,
            start=0.0,
            end=1.0,
            explicit=kinds,
        )
        made["5"]["inputs"]["schedule"] = ["9", 0]
    return made


def of_picture(info: dict) -> dict:
    """The graph that makes a picture again: its own, but all caching comes from the recipe in the picture."""
    made = json.loads(info["prompt"])
    ((number, run),) = json.loads(info["dual_cache"])["runs"].items()
    inputs = made[number]["inputs"]
    assert "speedup" not in run["recipe"], "the recipe is not what ran: it asks for a profile"
    recipe = json.dumps({"format": 1, "kind": "cache_recipe", **run["recipe"]})
    made["recipe"] = node(
        "FeatureForecast",
        model=["1", 0],
        preset="off",
        forecast="from recipe",
        gain=1.0,
        level="from recipe",
        order=0,
        coordinate="from recipe",
        adapt="fixed",
        recipe=recipe,
    )
    return {**made, number: node("KSampler", model=["recipe", 0], **{name: inputs[name] for name in SAMPLED})}


def kept(server: Server, name: str) -> tuple[dict, list]:
    """What a saved picture carries, and the picture."""
    outputs = server.queue(graph(**KEPT[name]))[1]
    return server.file(outputs, "7").info, pictures(server, outputs)


def repeated(name: str, first: Server, server: Server) -> Row:
    """Whether another server makes a picture again from what it carries, by the steps that ran."""
    info, wanted = kept(first, name)
    outputs = server.queue(of_picture(info))[1]
    was, now = (
        next(iter(json.loads(i["dual_cache"])["runs"].values()))
        for i in (info, server.file(outputs, "7").info)
    )
    wrong = [] if same(pictures(server, outputs), wanted) else ["another picture"]
    if was["records"]["actual"] != now["records"]["actual"]:
        wrong.append(f"{now['records']['actual']} ran, not {was['records']['actual']}")
    return Row(
        f"from a picture: {name}",
        not wrong,
        "; ".join(wrong) or f"equal in another server, {was['records']['actual']}",
    )


def cases(names=None) -> list:
    among = tuple(RUNS if names is None else names)
    return [(name, partial(again, name, among)) for name in among]


def rows(deadline: Deadline, names=None) -> Iterator[Row]:
    """One row per run, and one per picture that is made again."""
    yield from tried(cases(names), deadline)
    with serving() as first, serving() as second:
        yield from tried(
            [(f"from a picture: {name}", partial(repeated, name, first, second)) for name in KEPT], deadline
        )
