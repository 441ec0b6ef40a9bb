"""The config as one run can have them: predictors that know where it begins and ends, plans of its
length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..base.coordinates import Node, same_levels
from ..base.wording import counted
from ..cache.feature_predictor import FeaturePredictor
from ..config import CacheConfig
from ..predictors.data_prediction import DataPrediction
from ..schedule.masks import Mask
from ..schedule.plan import CacheSchedule, explicit, from_generator

LEAST_STEPS = 12
"""Below this many steps plain sampling with fewer steps came closer than every plan (embedded model)."""
FRESH_NOISE = (
    "This sampler adds fresh noise at its steps, which forecasts of features do not see; aggressive steps "
    "forecast the model's prediction of the data instead. The picture still differs more from the uncached "
    "one than with euler or dpmpp_2m."
)


def fitted_to_run(
    settings: CacheConfig,
    sigmas: Sequence[float],
    flow: bool,
    fresh_noise: bool = False,
    refused: bool = False,
) -> tuple[CacheConfig, CacheSchedule, Mask | None, list[str]]:
    """The settings, the plan and the mask of a run with these noise levels, and a sentence for everything
    that differs from what was asked for.

    flow, fresh_noise: as in `Controller`.
    refused: nothing is cached in this run, so what the plan would have cost is not said.
    """
    steps, said = len(sigmas) - 1, []
    ends = Node(0.0, float(sigmas[0]), flow), Node(float(steps), float(sigmas[-1]), flow)

    def over(predictor: FeaturePredictor) -> FeaturePredictor:
        predictor, sentence = _of_this_run(predictor, sigmas)
        if sentence is not None:
            said.append(sentence)
        return predictor.over_run(*ends)

    modules = settings.module_predictor
    settings = replace(
        settings, predictor=over(settings.predictor), module_predictor=modules and over(modules)
    )
    mask = settings.mask and settings.mask.scaled(steps)
    if settings.mask is not None and settings.mask.steps != steps:
        said.append(
            f"The mask was made for {settings.mask.steps} steps and has been scaled to the {steps} steps of "
            "this run."
        )
    elif settings.mask is None and settings.schedule is not None and settings.schedule.steps != steps:
        said.append(
            f"The schedule was made for {settings.schedule.steps} steps and has been scaled to {steps}."
        )
    schedule = settings.schedule_for(steps)
    if settings.skips_nothing_in(steps):
        said.append(short_run(settings, steps))
    elif not refused and _is_published(settings) and steps < LEAST_STEPS and schedule.kinds.strip("F"):
        said.append(published_plan(schedule))
    if fresh_noise and schedule.kinds.strip("F"):
        settings, schedule, mask = _for_fresh_noise(settings, schedule, ends)
        said.append(FRESH_NOISE)
    return settings, schedule, mask, said


def _is_published(settings: CacheConfig) -> bool:
    """Whether the plan is a named method's own, for any number of steps."""
    return settings.mask is None and settings.schedule is None and settings.method != "custom"


def short_run(settings: CacheConfig, steps: int) -> str:
    """Why nothing is skipped in a short run, and what costs as much as skipping would."""
    plan = from_generator(settings.generator, steps)
    fewer = plan.kinds.count("F")
    if fewer == steps:
        return (
            f"Nothing was skipped, because {settings.method} has no step to skip in {counted(steps, 'step')}."
        )
    return (
        f"Nothing was skipped in {counted(steps, 'step')}: {counted(fewer, 'plain step')} cost as much as "
        f"{settings.method} would, and came closer to the full run on the embedded model. To save time, "
        "sample "
        f"with {counted(fewer, 'step')}; caching pays from about {settings.least_steps} steps on."
    )


def published_plan(schedule: CacheSchedule) -> str:
    """What is said of a published plan that skips steps of a short run."""
    fewer = len(schedule.kinds) - schedule.kinds.count("A")
    return (
        f"With {counted(len(schedule.kinds), 'step')}, {counted(fewer, 'plain step')} cost about as much "
        "as this "
        "plan, and came closer to the full run on the embedded model."
    )


def _for_fresh_noise(settings: CacheConfig, schedule: CacheSchedule, ends: tuple[Node, Node]):
    """The config for a sampler that adds fresh noise: forecasts of the data prediction at the model's
    output.

    Measured on the embedded model (12 and 24 steps, half of them skipped): 28 to 55 dB to plain sampling,
    where forecasts of features ended at 9 to 39 dB. Conservative steps, which replay attention, run as
    aggressive ones; a mask names modules, so its steps do too."""
    live = settings.attention == "live" and settings.mask is None
    kinds = schedule.kinds if live else schedule.kinds.replace("C", "A")
    plan = explicit(kinds, list(schedule.ratios))
    plan = replace(plan, name=schedule.name)
    rule = settings.predictor if isinstance(settings.predictor, DataPrediction) else DataPrediction()
    settings = replace(
        settings,
        schedule=plan,
        mask=None,
        level="output",
        first=0,
        predictor=rule.over_run(*ends),
        module_predictor=settings.module_predictor if live else None,
    )
    return settings, plan, None


def _of_this_run(predictor: FeaturePredictor, sigmas: Sequence[float]) -> tuple[FeaturePredictor, str | None]:
    """The predictor, or its fallback and a sentence where its weights were solved for another run."""
    solved, steps = predictor.solved_for, len(sigmas) - 1
    if solved is None:
        return predictor, None
    if solved.steps != steps:
        return solved.fallback, (
            f"The forecast was solved for {solved.steps} steps, and this run has {steps}; using a "
            f"{solved.fallback.name} forecast instead. Make a plan for {steps} steps."
        )
    if solved.sigmas and not same_levels(solved.sigmas, sigmas):
        return solved.fallback, (
            f"The forecast was solved for other noise levels; using a {solved.fallback.name} forecast "
            "instead. Make the plan for the run's noise levels, or connect the plan's sigmas to the sampler."
        )
    return predictor, None
