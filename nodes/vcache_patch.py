"""V-Cache Attention Patch: how conservative steps choose the tokens they compute afresh."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.selectors.token_selection import Selector
from .comfy import patching, requests
from .types import CATEGORY, advanced, optional

SCORES = {
    "stratified random": "random",
    "value norm, high first": "value_norm_high",
    "value norm, low first": "value_norm_low",
}
SEVERAL = (
    "Several V-Cache Attention Patch nodes are on this model: only the last one in a row acts. "
    "Remove the others."
)
DEFAULT_SCORE = "value norm, high first"


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The diffusion model."),
        *optional(
            io.Combo.Input(
                "score",
                options=list(SCORES),
                default=DEFAULT_SCORE,
                tooltip="The score of a token; the highest are refreshed. The two published value-norm "
                "scores have opposite signs; random gives similar quality.",
            ),
            io.Float.Input(
                "ratio",
                default=0.1,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Share of the image tokens refreshed on a conservative step. It replaces the "
                "ratio in the plan.",
            ),
        ),
        *optional(*_advanced_inputs()),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        advanced(
            io.Float.Input(
                "staleness",
                default=0.25,
                min=0.0,
                max=2.0,
                step=0.05,
                tooltip="Weight of how long a token has not been refreshed.",
            )
        ),
        advanced(
            io.Float.Input(
                "spatial_bonus",
                default=0.0,
                min=0.0,
                max=2.0,
                step=0.05,
                tooltip="Bonus for the best token of each 2 x 2 cell, which spreads the choice "
                "over the picture.",
            )
        ),
        advanced(
            io.Float.Input(
                "text_ratio",
                default=-1.0,
                min=-1.0,
                max=1.0,
                step=0.01,
                tooltip="Share of the text tokens refreshed; -1 uses the same share as for the image.",
            )
        ),
        advanced(
            io.Combo.Input(
                "attention",
                options=["frozen", "live"],
                default="frozen",
                tooltip="Frozen keeps attention as the last full step left it (DuCa). Live "
                "recomputes it "
                "for the refreshed tokens.",
            )
        ),
        advanced(
            io.Int.Input(
                "seed",
                default=0,
                min=0,
                max=0xFFFFFFFF,
                control_after_generate=False,
                tooltip="Seed of the random choice.",
            )
        ),
    ]


class VCacheAttentionPatch(io.ComfyNode):
    """Sets the token selector of a MODEL that Dual Cache patches, before or after this node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCacheAttentionPatch",
            display_name="V-Cache Attention Patch",
            category=CATEGORY,
            description="Chooses which tokens a conservative step refreshes, by the norm of their "
            "attention values or at random. "
            "It needs Dual Cache or Dual Cache Sampler, before or after it, with a plan that has "
            "conservative steps.",
            inputs=_inputs(),
            outputs=[io.Model.Output(tooltip="The model, patched.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        score=DEFAULT_SCORE,
        ratio=0.1,
        staleness=0.25,
        spatial_bonus=0.0,
        text_ratio=-1.0,
        attention="frozen",
        seed=0,
    ) -> io.NodeOutput:
        selector = Selector(SCORES[score], staleness=staleness, spatial_bonus=spatial_bonus)
        notes = (SEVERAL,) if requests.TOKENS in model.model_options.get("transformer_options", {}) else ()
        request = requests.TokenRequest(
            selector, ratio, None if text_ratio < 0 else text_ratio, attention, seed, notes
        )
        return io.NodeOutput(patching.patch(model, requests.TOKENS, request))
