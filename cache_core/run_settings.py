"""Settings as one run can have them: predictors that know where it begins and ends, plans of its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .base.coordinates import Node, same_levels
from .cache.feature_predictor import FeaturePredictor
from .config import Settings
from .schedule.masks import Mask
from .schedule.plan import CacheSchedule


def fitted_to_run(
    settings: Settings, sigmas: Sequence[float], flow: bool
) -> tuple[Settings, CacheSchedule, Mask | None, list[str]]:
    """The settings, the plan and the mask of a run with these noise levels, and a sentence for everything
    that differs from what was asked for.

    flow: as in `Controller`.
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
    return settings, settings.schedule_for(steps), mask, said


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
