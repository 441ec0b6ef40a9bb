"""Profile Prompts: records a list of prompts in one run."""

from __future__ import annotations

import hashlib
import json

from comfy_api.latest import io

from .comfy import events, identity, loading, patching, profile_files, requests, samplers
from .profiles import recording_inputs
from .types import CATEGORY, CacheProfile


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
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to learn about."),
                io.Clip.Input("clip", tooltip="Encodes the prompts."),
                io.Latent.Input(
                    "latent_image", tooltip="Gives the size to sample at, such as Empty Latent Image."
                ),
                io.String.Input(
                    "name",
                    default="my model",
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
                    "negative", default="", tooltip="The negative prompt of all, used with guidance above 1."
                ),
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
                    tooltip="The sampler of the runs to be planned, one that evaluates the model once "
                    "per step.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=samplers.SCHEDULERS,
                    default="simple",
                    tooltip="How the noise levels are spaced.",
                ),
                *recording_inputs(),
            ],
            outputs=[
                CacheProfile.Output(display_name="profile", tooltip="The whole profile, for Plan Cache."),
                io.String.Output(display_name="text", tooltip="What was recorded, in words."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name, **inputs):
        path = profile_files.path_of(name, new=True)
        return path.stat().st_mtime_ns if path.is_file() else 0

    @classmethod
    def execute(
        cls,
        model,
        clip,
        latent_image,
        name,
        prompts,
        negative="",
        seed=0,
        steps=30,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        module_tokens=0,
        clusters=0,
    ) -> io.NodeOutput:
        path, node_id = profile_files.path_of(name, new=True), cls.hidden.unique_id
        wanted = list(dict.fromkeys(line.strip() for line in prompts.splitlines() if line.strip()))
        if not wanted:
            raise ValueError("prompts is empty: write one prompt per line.")
        known = set(profile_files.read(path).prompts) if path.is_file() else set()
        how = [
            identity.name_of(model),
            list(latent_image["samples"].shape),
            negative,
            seed,
            steps,
            cfg,
            sampler_name,
            scheduler,
        ]
        marks = {prompt: _mark(prompt, how) for prompt in wanted}
        missing = [prompt for prompt in wanted if marks[prompt] not in known]
        against = loading.encode(clip, negative) if missing else None
        for i, prompt in enumerate(missing):
            events.show(f"Recording prompt {len(wanted) - len(missing) + i + 1} of {len(wanted)}.", node_id)
            recording = profile_files.Recording(path, module_tokens, clusters, marks[prompt], strict=True)
            patched = patching.patch(model, requests.KEY, requests.ProfileRequest(recording))
            own = (
                seed + int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16)
            ) % 2**64  # whatever the prompt's place in the list
            samplers.sample(
                patched,
                own,
                steps,
                cfg,
                sampler_name,
                scheduler,
                loading.encode(clip, prompt),
                against,
                latent_image,
                1.0,
            )
        whole = profile_files.read(path)
        there = ", the others were there already" if len(missing) < len(wanted) else ""
        text = (
            f"Recorded {len(missing)} of {len(wanted)} prompts{there}. {path.name} holds "
            f"{len(whole.grams)} runs; with guidance, a "
            "picture counts twice."
        )
        lacks = [
            what
            for what, asked, there in (
                ("modules", module_tokens, whole.modules),
                ("clusters", clusters, whole.clusters),
            )
            if asked and not there
        ]
        if lacks and len(missing) < len(wanted):
            text += f" They have no {' and no '.join(lacks)}; record under another name to have them."
        events.show(text, node_id)
        return io.NodeOutput(whole, text, ui={"text": [text]})


def _mark(prompt: str, how: list) -> str:
    """What tells a prompt that was recorded so from others in a file, without its words."""
    return hashlib.sha256(json.dumps([prompt, *how]).encode()).hexdigest()[:16]
