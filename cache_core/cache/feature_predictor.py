"""The interface of predictors: what rebuilds a skipped feature from its snapshots implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..base.coordinates import Node

if TYPE_CHECKING:
    from .feature_cache import Site


@dataclass(frozen=True)
class SolvedRun:
    """The run that a predictor's weights were solved for.

    steps: of that run.
    sigmas: its steps + 1 noise levels, or empty where any will do.
    fallback: the predictor for every other run.
    """

    steps: int
    sigmas: tuple[float, ...]
    fallback: FeaturePredictor


class FeaturePredictor:
    """What the controller, the sites and the hooks ask of a predictor. Subclasses are immutable.

    What a predictor learns of one site during a run goes into `Site.learned`.
    """

    name: str
    """Shown in reports."""
    needs: int
    """Number of snapshots worth keeping."""
    gain: float = 1.0
    """Scale of the way from the newest snapshot to the forecast, for display."""
    probe: str | None = None
    """What the predictor reads of the current step: "input" (the modulated input of the first block), "block"
    (the residual of the first blocks), "latent" (the input of the model, at level output) or None."""
    probe_blocks: int = 0
    """How many blocks run on every step for the probe."""
    by_token: bool = True
    """Whether the forecast of some tokens needs these tokens alone."""
    solved_for: SolvedRun | None = None
    """Set where the weights hold for one run only."""

    def over_run(self, first: Node, last: Node) -> FeaturePredictor:
        """The predictor for a run from one node to another."""
        return self

    def without_probe(self) -> FeaturePredictor | None:
        """The predictor to use at a level that has no such probe; None: plain reuse."""
        return None

    def learn(self, site: Site, truth: torch.Tensor, node: Node) -> None:
        """Called on a full step, before `truth` [b,...] joins the snapshots of `site`."""

    def forecast(self, site: Site, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        """The value of `site` at `node`; `out` as in `Site.combine`."""
        raise NotImplementedError

    def to_dict(self) -> dict:
        """The predictor as the JSON that `predictors.build.forecast` reads."""
        raise NotImplementedError
