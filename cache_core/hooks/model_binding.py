"""A model of a run: its family, its blocks, and the settings fitted to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from ..config import CacheConfig
from ..models.block_spec import Family
from ..models.capabilities import coarser, fit, gave_way
from ..models.detection import DETECTED, detect
from ..models.families import Block, blocks_of, find_family, side_modules_of
from ..schedule.masks import Mask
from .block_spans import SpanWiring
from .call_context import Call
from .wiring import Wiring


@dataclass(frozen=True)
class Model:
    """A model of this run, and the settings fitted to it.

    module: the model itself, held so that its id is not given to another object.
    family: its row in the registry or a guessed one; None without.
    blocks: in running order; empty where none are known.
    settings: fitted to the model.
    unchecked: kinds of planned steps that no self-check has compared yet.
    rows: whether the self-check allows conservative steps.
    runs: places of the first and last block of each span that the mask skips together; None without such a
        mask.
    refused: why this run samples the model plainly, as its calls have shown, or None.
    """

    module: nn.Module
    family: Family | None
    blocks: list[Block]
    settings: CacheConfig
    unchecked: frozenset[str] = frozenset()
    rows: bool = True
    runs: tuple[tuple[int, int], ...] | None = None
    refused: str | None = None

    @property
    def name(self) -> str:
        return self.family.name if self.family else type(self.module).__name__

    @property
    def refusal(self) -> str | None:
        """Why the model is sampled plainly, or None."""
        return self.refused or (self.family and self.family.refusal)

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

    def lowered(self, settings: CacheConfig, kinds: str, rows: bool) -> Model:
        """The model with other settings, for steps of these kinds; rows: as in `meet`."""
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
        if self.family is None or not self.blocks:
            return False
        return self.family.modules if masked else self.family.tokens

    def wiring(self, call: Call) -> Wiring:
        """The shims of a call."""
        if self.runs is not None:
            return SpanWiring(call, self.blocks, runs=self.runs if self.rows else ())
        side = side_modules_of(self.module, self.family) if self.family and self.blocks else ()
        return Wiring(call, self.blocks, *self._run, side)


def meet(
    module: nn.Module, settings: CacheConfig, kinds: str, mask: Mask | None, rows: bool, skips: bool
) -> tuple[Model, list[str]]:
    """A model at its first call, and a sentence for each of the settings that it cannot have.

    module: the model that really runs.
    settings: as the user asked.
    kinds: of the planned steps.
    mask: of this run, scaled to its steps.
    rows: whether conservative steps are among the planned ones.
    skips: whether anything is to be skipped."""
    family = find_family(module)
    if family is None and settings.detect and skips:
        family = detect(module)
    blocks = blocks_of(module, family) if family else []
    sentences, runs = [], None
    if (
        mask is not None and mask.runs and family and blocks and skips and family.module != DETECTED
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


def _to_check(settings: CacheConfig, blocks: list[Block], kinds: str) -> frozenset[str]:
    """Kinds of steps to come that the self-check compares."""
    planned = set(kinds) - {"F"} if blocks else set()
    return frozenset(planned - {"A"} if settings.level == "output" else planned)


def _unknown(mask: Mask | None, blocks: list[Block]) -> list[str]:
    """A sentence about the names of the mask that this model does not have."""
    known = {
        ".".join(map(str, (*b.name, *part))) for b in blocks for part in ((), *((p,) for p in b.spec.parts))
    }
    unknown = [n for n in mask.names if n not in known] if mask and blocks else []
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return (
        [f"Ignored mask entries that this model does not have: {', '.join(unknown[:3])}{more}."]
        if unknown
        else []
    )
