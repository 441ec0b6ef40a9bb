"""Dual Cache Sampler: KSampler with caching built in, and the report as an output."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.recipes import preset_names
from .comfy import executing, patching, requests, samplers
from .comfy.report_box import nothing_sampled
from .dual_cache import DEFAULT_PRESET, FROM_PRESET, forecast_inputs, memory_input, settings_from
from .types import CATEGORY, Report, optional, sampler_inputs, schedule_input


class DualCacheSampler(io.ComfyNode):
    """Samples like KSampler, by a caching plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheSampler",
            display_name="Dual Cache Sampler",
            category=CATEGORY,
            description="KSampler with dual caching: full, conservative and aggressive steps by a plan. "
            "Gives the latent and a report of what ran.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model."),
                *optional(
                    *sampler_inputs("Steps of the sampler."),
                ),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Latent.Input("latent_image", tooltip="The latent to start from."),
                *optional(
                    io.Float.Input(
                        "denoise",
                        default=1.0,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip="Below 1 keeps part of the given latent.",
                    ),
                    io.Combo.Input(
                        "preset",
                        options=preset_names(),
                        default=DEFAULT_PRESET,
                        tooltip="The caching method and its plan.",
                    ),
                    schedule_input("preset"),
                    *forecast_inputs(),
                    memory_input(),
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent"), Report.Output(display_name="report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        seed=0,
        steps=30,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        preset=DEFAULT_PRESET,
        schedule=None,
        forecast=FROM_PRESET,
        gain=0.9,
        memory=0.0,
    ) -> io.NodeOutput:
        request = requests.CacheRequest(
            settings_from(preset, schedule, forecast, gain),
            node_id=executing.display_id(cls.hidden.unique_id),
            memory=memory,
        )
        patched = patching.patch_by_node(model, request)
        latent = samplers.sample(
            patched, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise
        )
        return io.NodeOutput(latent, request.box.report or nothing_sampled(request.settings))
