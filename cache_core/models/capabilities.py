"""Which of the levels a model can have. The config is fitted to it, at a coarser level where the registry
does not describe its blocks far enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..base.names import LEVELS, NAMES
from ..config import CacheConfig
from ..predictors.data_prediction import DataPrediction
from ..predictors.extrapolation import predictor
from .block_spec import BlockSpec, Family
from .detection import DETECTED
from .families import Block


def levels_of(family: Family | None) -> tuple[str, ...]:
    """The levels that models of a family can have; those without one can be cached at their output only."""
    if family is not None and family.refusal:
        return ()
    if family is None or not family.lists:
        return ("output",)
    if family.module == DETECTED:
        return ("output", "final")
    lacking = {"module": not family.modules, "stack": not _one_run(family.lists[0][2], family.lists[-1][2])}
    return tuple(level for level in LEVELS if not lacking.get(level))


def abilities(family: Family | None) -> list[str]:
    """The levels of a row, and "tokens" where conservative steps can refresh token rows alone."""
    return [*levels_of(family), *(["tokens"] if family is not None and family.tokens else [])]


def fit(
    settings: CacheConfig, family: Family | None, blocks: Sequence[Block], model: str, conservative: bool
) -> tuple[CacheConfig, list[str]]:
    """The config that a model with these blocks can have, and a sentence for everything in which they
    differ.

    settings: as the user asked.
    family: the model's row; its refusal is not looked at.
    blocks: of the model; without any, only its output can be cached.
    model: the name of its class.
    conservative: whether the plan has conservative steps."""
    fitted, sentence = _levelled(settings, family, blocks, model)
    said = [s for s in (sentence, gave_way(settings, fitted)) if s]
    settings = fitted
    if blocks and family is not None and family.module == DETECTED:
        said.insert(
            0,
            f"{family.name} is not a model this pack knows; the {len(blocks)} blocks found at "
            f"{family.lists[0][0]} are taken "
            "for its own, which is experimental.",
        )
    if family is None or not blocks or not conservative or settings.mask is not None:
        return settings, said
    if not family.tokens or family.attention:
        return settings, said
    if settings.selector.needs_values:
        settings = replace(settings, selector=replace(settings.selector, score="random"))
        said.append(f"The attention values of {family.name} cannot be read; tokens are chosen at random.")
    if settings.attention == "live":
        settings = replace(settings, attention="frozen")
        said.append(f"Attention of single tokens of {family.name} cannot be computed afresh; it is replayed.")
    return settings, said


def _levelled(
    settings: CacheConfig, family: Family | None, blocks: Sequence[Block], model: str
) -> tuple[CacheConfig, str | None]:
    """The settings at a level that the model can have."""
    if family is None or not blocks:
        if family is None:
            why = f"{model} is not a model this pack knows"
        elif family.output_only and settings.level == "output":
            return settings, None
        elif family.output_only:
            why = f"{family.name} can be cached at its output only, because {family.output_only}"
        else:
            why = f"The blocks of {family.name} are not where this pack knows them to be"
        return coarser(settings, "output"), f"{why}; aggressive steps put back {NAMES['output']}."
    held = sorted(set(family.mixed) & set(settings.streams)) if settings.level != "output" else []
    if held:
        return coarser(settings, "output"), (
            f"The blocks of {family.name} hold all streams in one sequence, of which {held[0]} is not to be "
            f"forecast; aggressive steps put back {NAMES['output']}."
        )
    if family.module == DETECTED and settings.level not in levels_of(family):
        return coarser(
            settings, "final"
        ), f"Of blocks that were guessed, aggressive steps put back {NAMES['final']}."
    if settings.level == "module" and not family.modules:
        return coarser(settings, "block"), (
            f"{family.name} has no level of modules in this pack; aggressive steps put back {NAMES['block']}."
        )
    if settings.level == "stack" and not _one_run(
        blocks[settings.blocks_run([b.name[0] for b in blocks])[0]].spec, blocks[-1].spec
    ):
        return coarser(settings, "final"), (
            f"The blocks of {family.name} change their tokens on the way; aggressive steps put back "
            f"{NAMES['final']}."
        )
    return settings, None


def coarser(settings: CacheConfig, level: str) -> CacheConfig:
    """The settings at another level; a predictor that needs a probe is replaced by its first rule where
    there is none."""
    rule = settings.predictor
    if rule.probe and level not in ("final", "stack") and not (rule.probe == "latent" and level == "output"):
        if level == "output":
            rule = DataPrediction(predictor("linear", gain=0.9))
        else:
            rule = rule.without_probe() or predictor("reuse")
    return replace(settings, level=level, predictor=rule)


def gave_way(before: CacheConfig, after: CacheConfig) -> str | None:
    """A sentence where a level has no probe for the forecast of the settings, None elsewhere."""
    if after.predictor == before.predictor:
        return None
    return (
        f"The forecast {before.predictor.name} needs the first blocks of a step, which do not run at this "
        f"level; {after.predictor.name} is used instead."
    )


def _one_run(first: BlockSpec, last: BlockSpec) -> bool:
    """Whether what the blocks from one of the `first` kind to one of the `last` add can be put back as one
    tensor per stream."""
    return first == last or set(last.joined or last.reads) <= set(first.streams)
