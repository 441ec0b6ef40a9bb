"""Names of levels and of the cache sites that belong to a whole model."""

from __future__ import annotations

LEVELS = ("final", "output", "stack", "block", "module")
"""Where aggressive steps put features back; `levels` says what each is."""


NAMES = {
    "final": "the final hidden state",
    "output": "the model's output",
    "stack": "what a run of blocks adds",
    "block": "what each block adds",
    "module": "each module's output",
}
"""What aggressive steps put back at each level."""


STREAMS = ("img", "audio")
"""What models of several streams give, in the order of their outputs."""
FINAL = ("final", "hidden")
OUTPUT = ("model", "output")
STACK = ("stack", "residual")
PATH = ("path", "input and output")
