"""The embedded model in ComfyUI: a small FLUX-layout transformer that draws shapes, for trying the cache
without a download."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..demo.scenes import encode_caption
from ..demo.weights import MODEL, VAE, WEIGHTS
from .comfy import loading
from .types import CATEGORY


class DemoModel(io.ComfyNode):
    """Loads the embedded model and its autoencoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheDemoModel",
            display_name="Dual Cache Demo Model",
            category=CATEGORY + "/demo",
            description="A 13 million parameter model in FLUX's layout that comes with this pack and "
            "draws coloured "
            "shapes (256 x 256 pixels).",
            inputs=[],
            outputs=[io.Model.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(loading.load_flux(WEIGHTS / MODEL), loading.load_vae(WEIGHTS / VAE))


class DemoCaption(io.ComfyNode):
    """Encodes a caption for the embedded model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheDemoCaption",
            display_name="Dual Cache Demo Caption",
            category=CATEGORY + "/demo",
            description="Turns a caption into conditioning for the Dual Cache Demo Model. An empty "
            "caption serves as the negative.",
            inputs=[
                io.String.Input(
                    "caption",
                    multiline=True,
                    default="a large red heart center on a checkered white background",
                    tooltip="Size, colour, shape and place of one object, or of two joined by 'and'; then "
                    "'on' and the background's texture and colour.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, caption) -> io.NodeOutput:
        return io.NodeOutput(conditioning(caption))


def conditioning(caption: str) -> list:
    """A caption in ComfyUI's list form."""
    tokens, pooled = encode_caption(caption)
    return [[torch.unsqueeze(tokens, 0), {"pooled_output": pooled.unsqueeze(0)}]]


class CaptionEncoder:
    """Stands where ComfyUI expects a CLIP: encodes captions of the embedded model."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list:
        return conditioning(tokens)


class DemoClip(io.ComfyNode):
    """Gives the embedded model's text encoder as a CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheDemoClip",
            display_name="Dual Cache Demo CLIP",
            category=CATEGORY + "/demo",
            description="The text encoder of the Dual Cache Demo Model, for nodes that take a CLIP.",
            inputs=[],
            outputs=[io.Clip.Output(tooltip="Encodes captions such as Demo Caption takes.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(CaptionEncoder())
