"""Rows of models that no ComfyUI of the tests has. They were read in ComfyUI's source up to 0.38, and run
only on models of the same call shape (tests/models/test_read_rows.py)."""

from __future__ import annotations

from .block_spec import BlockSpec, Family

READ_ROWS = (
    Family(
        "Qwen-Image 2.1",
        "comfy.ldm.qwen_image21.model",
        "QwenImage21Transformer2DModel",
        output_only="it keeps keys and values of text and references as long as nothing patches its blocks",
    ),
    Family(
        "SenseNova U1.5",
        "comfy.ldm.sensenova.model",
        "SenseNovaU15",
        output_only="it runs its blocks by functions of theirs, on a prefix whose keys and values it keeps",
    ),
    Family(
        "Kandinsky 6",
        "comfy.ldm.kandinsky6.model",
        "Kandinsky6",
        (
            (
                "visual_blocks",
                "block",
                BlockSpec(
                    (("img", "visual", 0), ("audio", "audio", 1)),
                    ("img", "audio"),
                    ("img", "audio"),
                    writes=True,
                ),
            ),
        ),
    ),
    Family(
        "Prism",
        "comfy.ldm.prism.model",
        "Prism",
        output_only="it runs blocks of three transformers in turn, and other ones at low noise",
    ),
)
