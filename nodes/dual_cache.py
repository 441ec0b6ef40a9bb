"""Dual Cache: patches a model so that any sampler node runs it by a caching plan."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.predictors.extrapolation import predictor
from ..cache_core.recipes import from_preset, preset_names
from .comfy import executing, patching, requests
from .types import CATEGORY, advanced, optional, schedule_input

FROM_PRESET = "from preset"
DEFAULT_PRESET = "balanced"


def settings_from(preset, schedule=None, forecast=FROM_PRESET, gain=0.9):
    """The config that the widgets of Dual Cache describe."""
    changes = {}
    if forecast != FROM_PRESET:
        changes["predictor"] = predictor(forecast, **({} if forecast == "reuse" else {"gain": gain}))
    return from_preset(preset, schedule, **changes)


def forecast_inputs():
    """The advanced inputs that Dual Cache and Dual Cache Sampler share."""
    return [
        advanced(
            io.Combo.Input(
                "forecast",
                options=[FROM_PRESET, "reuse", "linear"],
                default=FROM_PRESET,
                tooltip="How a skipped step rebuilds the final hidden state: reuse of the last one, or "
                "extrapolation from the last two full steps.",
            )
        ),
        advanced(
            io.Float.Input(
                "gain",
                default=0.9,
                min=0.0,
                max=1.5,
                step=0.05,
                tooltip="Strength of a linear forecast; a little below 1 improves the worst pictures. "
                "Used when forecast is set above.",
            )
        ),
    ]


def memory_input():
    """The advanced input, shared too, that limits what caches hold; it stands last, since saved graphs name
    widgets by their place."""
    return advanced(
        io.Float.Input(
            "memory",
            default=0.0,
            min=0.0,
            max=1024.0,
            step=0.25,
            optional=True,
            tooltip="Most memory for caches in GB; 0 chooses a limit from the free memory. Caches that "
            "do not fit are kept in main memory or reduced, and the report says how.",
        )
    )


class DualCache(io.ComfyNode):
    """Patches a MODEL with a caching method; sampling itself stays with the sampler node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCache",
            display_name="Dual Cache",
            category=CATEGORY,
            description="Makes sampling faster by not computing what barely changes between steps. Works "
            "with any sampler node.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to speed up."),
                *optional(
                    io.Combo.Input(
                        "preset",
                        options=preset_names(),
                        default=DEFAULT_PRESET,
                        tooltip="The method and its plan: quality skips least, fast skips most, the "
                        "others have the names of their papers.",
                    ),
                    schedule_input("preset"),
                    *forecast_inputs(),
                    memory_input(),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, patched.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, preset=DEFAULT_PRESET, schedule=None, forecast=FROM_PRESET, gain=0.9, memory=0.0
    ) -> io.NodeOutput:
        request = requests.CacheRequest(
            settings_from(preset, schedule, forecast, gain),
            node_id=executing.display_id(cls.hidden.unique_id),
            memory=memory,
        )
        return io.NodeOutput(patching.patch_by_node(model, request))
