"""Rows of the further embedded models, which `demo/` samples without a host."""

from __future__ import annotations

from .block_spec import Family, one, two

EMBEDDED_ROWS = (
    Family(
        "Wan (embedded)",
        "demo.wan",
        "WanModel",
        (("blocks", "block", one("x", "self_attn", "cross_attn", rows="ffn")),),
    ),
    Family(
        "Skip-DiT (embedded)",
        "demo.skip",
        "SkipFlux",
        (
            ("double_blocks", "double", two(("img", 0), ("txt", 1))),
            ("single_blocks", "single", one("x", joined=("txt", "img"))),
        ),
    ),
)
