"""Profile Prompts: records a list of prompts in one run."""

from __future__ import annotations

import hashlib
import json

from comfy_api.latest import io

from ..cache_core.calibration.profile import Profile
from .comfy import events, executing, identity, loading, patching, profile_files, requests, samplers
from .profiles import DEFAULT_NAME, recording_inputs
from .types import CATEGORY, CacheProfile, optional


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The diffusion model to learn about."),
        io.Clip.Input("clip", tooltip="Encodes the prompts."),
        io.Latent.Input("latent_image", tooltip="Gives the size to sample at, such as Empty Latent Image."),
        *optional(
            io.String.Input(
                "name",
                default=DEFAULT_NAME,
                tooltip="Name of the profile. Prompts that it holds already are not sampled "
                "again; runs of another kind are refused and nothing is overwritten.",
            ),
            io.String.Input(
                "prompts",
                multiline=True,
                default="",
                tooltip="One prompt per line; a dozen different ones are enough.",
            ),
            io.String.Input(
                "negative",
                default="",
                tooltip="The negative prompt of all, used with guidance above 1.",
            ),
            *_sampling_inputs(),
            *recording_inputs(),
        ),
    ]


def _sampling_inputs() -> list[io.Input]:
    """How each prompt is sampled."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            tooltip="Seed of the noise, which differs from prompt to prompt.",
        ),
        io.Int.Input(
            "steps",
            default=30,
            min=1,
            max=10000,
            tooltip="Steps of the sampler, as in the runs to be planned.",
        ),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance, as in the runs to be planned.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=samplers.SAMPLERS,
            default="euler",
            tooltip="The sampler of the runs to be planned, one that evaluates the model once per step.",
        ),
        io.Combo.Input(
            "scheduler",
            options=samplers.SCHEDULERS,
            default="simple",
            tooltip="How the noise levels are spaced.",
        ),
    ]


class ProfilePrompts(io.ComfyNode):
    """Samples one prompt after the other, uncached, and adds each to a profile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheProfilePrompts",
            display_name="Profile Prompts",
            category=CATEGORY,
            description="Samples a list of prompts, uncached, and records them into a profile that Plan "
            "Cache makes plans from. What has "
            "been recorded is saved after each prompt; a second run goes on where the first has stopped.",
            inputs=_inputs(),
            outputs=[
                CacheProfile.Output(display_name="profile", tooltip="The whole profile, for Plan Cache."),
                io.String.Output(display_name="text", tooltip="Sentences on what was recorded."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name=DEFAULT_NAME, **inputs):
        path = profile_files.path_of(name, new=True)
        return path.stat().st_mtime_ns if path.is_file() else 0

    @classmethod
    def execute(
        cls,
        model,
        clip,
        latent_image,
        name=DEFAULT_NAME,
        prompts="",
        negative="",
        seed=0,
        steps=30,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        module_tokens=0,
        clusters=0,
    ) -> io.NodeOutput:
        path, node_id = profile_files.path_of(name, new=True), executing.display_id(cls.hidden.unique_id)
        wanted = list(dict.fromkeys(line.strip() for line in prompts.splitlines() if line.strip()))
        if not wanted:
            raise ValueError("prompts is empty: write one prompt per line.")
        known = set(profile_files.read(path).prompts) if path.is_file() else set()
        shape, settings = list(latent_image["samples"].shape), (steps, cfg, sampler_name, scheduler)
        how = [identity.name_of(model), shape, negative, seed, *settings]
        marks = {prompt: _mark(prompt, how) for prompt in wanted}
        missing = [prompt for prompt in wanted if marks[prompt] not in known]
        against = loading.encode(clip, negative) if missing else None
        for i, prompt in enumerate(missing):
            events.show(f"Recording prompt {len(wanted) - len(missing) + i + 1} of {len(wanted)}.", node_id)
            recording = profile_files.Recording(path, module_tokens, clusters, marks[prompt], strict=True)
            patched = patching.patch(model, requests.KEY, requests.ProfileRequest(recording))
            text = loading.encode(clip, prompt)
            samplers.sample(patched, _seed(seed, prompt), *settings, text, against, latent_image, 1.0)
        whole = profile_files.read(path)
        said = _told(path.name, whole, len(wanted), len(missing), module_tokens, clusters)
        events.show(said, node_id)
        return io.NodeOutput(whole, said, ui={"text": [said]})


def _told(file: str, whole: Profile, wanted: int, recorded: int, module_tokens: int, clusters: int) -> str:
    """What was recorded, in a few sentences."""
    there = ", the others were there already" if recorded < wanted else ""
    text = (
        f"Recorded {recorded} of {wanted} prompts{there}. {file} holds {len(whole.grams)} runs; "
        "with guidance, a picture counts twice."
    )
    parts = (("modules", module_tokens, whole.modules), ("clusters", clusters, whole.clusters))
    lacks = [what for what, asked, held in parts if asked and not held]
    if lacks and recorded < wanted:
        text += f" They have no {' and no '.join(lacks)}; record under another name to have them."
    return text


def _seed(seed: int, prompt: str) -> int:
    """The seed of a prompt's noise, whatever its place in the list."""
    return (seed + int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16)) % 2**64


def _mark(prompt: str, how: list) -> str:
    """What tells a prompt that was recorded so from others in a file, without its words."""
    return hashlib.sha256(json.dumps([prompt, *how]).encode()).hexdigest()[:16]
