"""What is known of a model for the length of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from ..config import Settings
from ..models.block_spec import BlockLayout, Family
from ..models.capabilities import coarser, fit, gave_way
from ..models.detection import DETECTED, detect
from ..models.families import Block, asides_of, blocks_of, find_family
from ..schedule.masks import Mask
from .block_spans import RunWiring
from .call_context import Call
from .layout_wiring import LayoutWiring
from .wiring import Wiring


@dataclass(frozen=True)
class Model:
    """A model of this run, which is held so that its id stays its own, and the settings fitted to it.

    unchecked: kinds of planned steps that no self-check has looked at. rows: whether token rows of it can be
        trusted. runs: places of the first and last block of those that the mask holds back together, None
        without such a mask."""

    module: nn.Module
    family: Family | None
    blocks: list[Block]
    settings: Settings
    unchecked: frozenset[str] = frozenset()
    rows: bool = True
    runs: tuple[tuple[int, int], ...] | None = None

    @property
    def name(self) -> str:
        return self.family.name if self.family else type(self.module).__name__

    @property
    def refusal(self) -> str | None:
        return self.family and self.family.refusal

    @cached_property
    def _run(self) -> tuple[int, int]:
        return self.settings.blocks_run([b.name[0] for b in self.blocks])

    @property
    def first(self) -> int:
        """Blocks before the run that aggressive steps skip."""
        return self._run[0]

    @property
    def aggressive(self) -> float:
        """Share of the blocks that aggressive steps run."""
        return sum(self._run) / max(len(self.blocks), 1)

    def lowered(self, settings: Settings, kinds: str, rows: bool) -> Model:
        """The model with other settings for steps of these kinds; rows: as in `meet`."""
        if not self.refusal:
            settings, _ = fit(settings, self.family, self.blocks, type(self.module).__name__, rows)
        runs = self.runs if self.runs is None or "C" in kinds else ()
        return replace(self, settings=settings, unchecked=_to_check(settings, self.blocks, kinds), runs=runs)

    def conserves(self, masked: bool) -> bool:
        """Whether conservative steps can run: by token rows, or by the modules that a mask names."""
        if not self.rows:
            return False
        if self.runs is not None:
            return bool(self.runs)
        if masked:
            return (
                bool(self.blocks)
                and self.family.modules
                and all(hasattr(b.adapter, "parts") for b in self.blocks)
            )
        return bool(self.blocks) and self.family.tokens

    def wiring(self, call: Call) -> Wiring:
        if self.runs is not None:
            return RunWiring(call, self.blocks, runs=self.runs if self.rows else ())
        if any(isinstance(b.adapter, BlockLayout) for b in self.blocks):
            return LayoutWiring(call, self.blocks, *self._run, asides_of(self.module, self.family))
        return Wiring(call, self.blocks, *self._run)


def meet(
    module: nn.Module, settings: Settings, kinds: str, mask: Mask | None, rows: bool, skips: bool
) -> tuple[Model, list[str]]:
    """What is known of a model at its first call, and sentences on what of the settings it cannot have.

    kinds: of the planned steps. rows: whether conservative steps are among them. skips: whether anything is
        to be skipped."""
    family = find_family(module)
    if family is None and settings.detect and skips:
        family = detect(module)
    blocks = blocks_of(module, family) if family else []
    sentences, runs = [], None
    if (
        mask is not None and mask.runs and blocks and skips and family.module != DETECTED
    ):  # guessed blocks are put back as a whole only
        runs, wanted = mask.held([b.name for b in blocks]), settings
        settings = coarser(settings, "block")
        sentences += [s for s in [gave_way(wanted, settings)] if s]
    if skips and not (family and family.refusal):
        settings, more = fit(settings, family, blocks, type(module).__name__, rows)
        sentences += more
    if isinstance(settings.first, str) and blocks and settings.first not in [b.name[0] for b in blocks]:
        sentences = [
            *sentences,
            f"This model has no {settings.first} blocks; the first half of its blocks runs on every step.",
        ]
    unchecked = _to_check(settings, blocks, kinds) if skips else frozenset()
    return Model(module, family, blocks, settings, unchecked, runs=runs), [
        *sentences,
        *_unknown(mask, blocks),
    ]


def _to_check(settings: Settings, blocks: list[Block], kinds: str) -> frozenset[str]:
    """Kinds of steps to come that the self-check looks at."""
    planned = set(kinds) - {"F"} if blocks else set()
    return frozenset(planned - {"A"} if settings.level == "output" else planned)


def _unknown(mask: Mask | None, blocks: list[Block]) -> list[str]:
    """Tells which names of the mask this model does not have."""
    known = {
        ".".join(map(str, (*b.name, *part)))
        for b in blocks
        for part in ((), *((p,) for p in getattr(b.adapter, "parts", ())))
    }
    unknown = [n for n in mask.names if n not in known] if mask and blocks else []
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return (
        [
            "The mask names what this model does not have, which plays no part: "
            f"{', '.join(unknown[:3])}{more}."
        ]
        if unknown
        else []
    )
