"""Feature Forecast: any published recipe, its parts changed one by one, and as text to save and share."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..cache_core.base.coordinates import COORDINATES
from ..cache_core.base.names import LEVELS
from ..cache_core.predictors.build import NAMES, forecast
from ..cache_core.predictors.extrapolation import MEMBERS
from ..cache_core.recipes import from_json, preset, preset_names, settings_of, to_json
from .comfy import executing, patching, requests
from .dual_cache import DEFAULT_PRESET
from .types import CATEGORY, advanced, optional, schedule_input

FROM_RECIPE, OWN = "from recipe", 0
ADAPT = {"fixed": None, "least squares": "least_squares", "back-off": "back_off"}


def recipe_from(
    name,
    rule=FROM_RECIPE,
    order=OWN,
    gain=1.0,
    coordinate=FROM_RECIPE,
    adapt="fixed",
    level=FROM_RECIPE,
    text="",
) -> dict:
    """The recipe that the node's widgets describe; ValueError in one sentence when they describe none."""
    recipe = from_json(text) if text.strip() else {"name": name, **preset(name)}
    changed = {}
    if level != FROM_RECIPE:
        changed["level"] = level
    if rule != FROM_RECIPE:
        part: dict = {"name": rule}
        if rule in MEMBERS:
            if order != OWN:
                part["order"] = order
            if coordinate != FROM_RECIPE:
                part["coordinate"] = coordinate
            if ADAPT[adapt]:
                part["adapt"] = ADAPT[adapt]
            part["gain"] = gain
        changed["predictor"] = forecast(part).to_dict()
    if not changed:
        return recipe
    # What families change of the base would undo the user's choice.
    families = {
        family: rest
        for family, parts in recipe.get("families", {}).items()
        if (rest := {k: v for k, v in parts.items() if k not in changed})
    }
    if families:
        changed["families"] = families
    kept = {k: v for k, v in recipe.items() if k not in ("families", "source", "measured")}
    return {**kept, **changed, "about": f"{recipe.get('name', 'custom')}, changed."}


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The diffusion model to speed up."),
        *optional(
            io.Combo.Input(
                "preset",
                options=preset_names(),
                default=DEFAULT_PRESET,
                tooltip="The recipe to start from: the method and its plan.",
            ),
            io.Combo.Input(
                "forecast",
                options=[FROM_RECIPE, *NAMES],
                default=FROM_RECIPE,
                tooltip="How a skipped feature is rebuilt from those of the last full steps. The "
                "help page says what "
                "each does.",
            ),
            io.Float.Input(
                "gain",
                default=1.0,
                min=0.0,
                max=2.0,
                step=0.05,
                tooltip="Strength of the forecast: 0 keeps the last feature, below 1 damps. Used "
                "when forecast is set "
                "above.",
            ),
            io.Combo.Input(
                "level",
                options=[FROM_RECIPE, *LEVELS],
                default=FROM_RECIPE,
                tooltip="Where features are put back: the final hidden state, the model's output, "
                "neighbouring blocks, every block or every module.",
            ),
            schedule_input("recipe"),
        ),
        *optional(*_advanced_inputs()),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        advanced(
            io.Int.Input(
                "order",
                default=OWN,
                min=0,
                max=5,
                tooltip="Order of the forecast, 0 for its usual one. Used when forecast is set above.",
            )
        ),
        advanced(
            io.Combo.Input(
                "coordinate",
                options=[FROM_RECIPE, *COORDINATES],
                default=FROM_RECIPE,
                tooltip="Coordinate of the forecast: noise level, step or log-SNR. Used when forecast is "
                "set above.",
            )
        ),
        advanced(
            io.Combo.Input(
                "adapt",
                options=list(ADAPT),
                default="fixed",
                tooltip="Adapts to the last forecast error: a gain solved by least squares, or a lower "
                "order after a worse forecast. Used when forecast is set above.",
            )
        ),
        advanced(
            io.String.Input(
                "recipe",
                multiline=True,
                default="",
                tooltip="A recipe as text, as this node gives it. It replaces the preset.",
            )
        ),
    ]


class FeatureForecast(io.ComfyNode):
    """Patches a MODEL with a recipe whose forecast and level can be set."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeatureForecast",
            display_name="Feature Forecast",
            category=CATEGORY,
            description="Dual Cache with every part adjustable: how skipped features are rebuilt, and "
            "where they are taken and put back. Gives the recipe as text too.",
            inputs=_inputs(),
            outputs=[
                io.Model.Output(tooltip="The model, patched."),
                io.String.Output(display_name="recipe", tooltip="The recipe as text, to save and share."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        preset=DEFAULT_PRESET,
        forecast=FROM_RECIPE,
        gain=1.0,
        level=FROM_RECIPE,
        schedule=None,
        order=OWN,
        coordinate=FROM_RECIPE,
        adapt="fixed",
        recipe="",
    ) -> io.NodeOutput:
        made = recipe_from(preset, forecast, order, gain, coordinate, adapt, level, recipe)
        if schedule is not None and (forecast, level) != (FROM_RECIPE, FROM_RECIPE):
            schedule = replace(schedule, forecast=None)  # what is chosen here wins, as in Dual Cache
        request = requests.CacheRequest(
            settings_of(made, schedule), node_id=executing.display_id(cls.hidden.unique_id)
        )
        return io.NodeOutput(patching.patch_by_node(model, request), to_json(made))
