"""What is known of a model for the length of a run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .families import Block, asides_of
from .flux_blocks import Call
from .layout_wiring import LayoutWiring
from .layouts import BlockLayout, Family
from .levels import Wiring
from .settings import Settings


@dataclass(frozen=True)
class Model:
    """A model of this run, which is held so that its id stays its own, and the settings fitted to it.

    first, probe: see `Settings.blocks_run`. unchecked: kinds of planned steps that no self-check has looked at. rows: whether token rows
    of it can be trusted.
    """

    module: nn.Module
    family: Family | None
    blocks: list[Block]
    settings: Settings
    first: int = 0
    probe: int = 0
    unchecked: frozenset[str] = frozenset()
    rows: bool = True

    @property
    def name(self) -> str:
        return self.family.name if self.family else type(self.module).__name__

    @property
    def refusal(self) -> str | None:
        return self.family and self.family.refusal

    def conserves(self, masked: bool) -> bool:
        """Whether conservative steps can run: by token rows, or by the modules that a mask names."""
        if not self.rows:
            return False
        if masked:
            return bool(self.blocks) and self.family.modules and all(hasattr(b.adapter, "parts") for b in self.blocks)
        return bool(self.blocks) and self.family.tokens

    def wiring(self, call: Call) -> Wiring:
        if any(isinstance(b.adapter, BlockLayout) for b in self.blocks):
            return LayoutWiring(call, self.blocks, self.first, self.probe, asides_of(self.module, self.family))
        return Wiring(call, self.blocks, self.first, self.probe)
