"""Forecast of the data prediction, for samplers that add fresh noise at their steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..base.coordinates import Node
from ..cache.feature_cache import Site
from ..cache.feature_predictor import FeaturePredictor
from ..cache.weighted_sums import weighted_sum
from .extrapolation import Predictor, predictor

SMALLEST = 1e-3
"""Weight of the output in the data prediction below which it cannot be told from it."""


@dataclass(frozen=True)
class DataPrediction(FeaturePredictor):
    """The model's output from a forecast of its data prediction D = a * input + b * output.

    a and b depend on the noise level and on what the model predicts (`base.coordinates.PREDICTIONS`). Where a
    sampler adds fresh noise to the latent, D changes slowly and the output does not. For level "output" only.

    rule: of the data prediction over the snapshots.
    """

    rule: Predictor = field(default_factory=lambda: predictor("linear", gain=0.7))

    probe = "latent"

    @property
    def name(self) -> str:
        return f"data prediction, {self.rule.name}"

    @property
    def needs(self) -> int:
        return self.rule.needs

    def over_run(self, first: Node, last: Node) -> DataPrediction:
        return DataPrediction(self.rule.over_run(first, last))

    def forecast(self, site: Site, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        seen = site.evidence
        nodes, newest, wanted = site.nodes, site.snapshots[0], node.data_factors
        if (
            seen is None
            or seen.now is None
            or seen.past.nodes != nodes
            or not seen.now.shape == newest.shape == seen.past.snapshots[0].shape
            or wanted is None
            or abs(wanted[1]) < SMALLEST
        ):
            return self.rule.forecast(site, node, out)
        at = self.rule.coordinate
        weights = self.rule.weights([n.at(at) for n in nodes], node.at(at))
        tensors, factors = [seen.now], [-wanted[0] / wanted[1]]
        for weight, there, latent, value in zip(weights, nodes, seen.past.snapshots, site.snapshots):
            if weight:
                known = there.data_factors
                assert known is not None  # all nodes of a run have the same prediction
                a, b = known
                tensors += [latent, value]
                factors += [weight * a / wanted[1], weight * b / wanted[1]]
        return weighted_sum(tensors, factors, out)

    def to_dict(self) -> dict:
        return {"name": "data_prediction", "rule": self.rule.to_dict()}
