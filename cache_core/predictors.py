"""How a skipped feature is rebuilt: weights over past snapshots, which depend only on where the snapshots lie and where they are wanted.

A new member is a rule (nodes, target) -> weights, nodes newest first, and one row of `MEMBERS`. The frame below cares for short
histories, unusable nodes, the gain, and a sum of exactly 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

Rule = Callable[[Sequence[float], float], Sequence[float]]
COORDINATES = ("sigma", "index")


def lagrange(nodes: Sequence[float], target: float) -> list[float]:
    """The polynomial through all nodes; one node: reuse (FORA, arXiv 2407.01425, DuCa), two: Newton's straight line.

    On equal gaps two nodes give TaylorSeer of order 1 (arXiv 2503.06923); unlike its published code this holds on unequal gaps too.
    """
    return [math.prod((target - b) / (a - b) for b in nodes if b != a) for a in nodes]


MEMBERS: dict[str, tuple[Rule, range]] = {
    "reuse": (lagrange, range(1)),
    "linear": (lagrange, range(1, 2)),
}
"""The rule of each name and the orders it may have, its default first."""


@dataclass(frozen=True)
class Predictor:
    """One way to rebuild a feature from up to `needs` snapshots.

    name: a key of `MEMBERS`. order: of the rule, which looks at order + 1 snapshots.
    gain: 0..2, scales the way from the newest snapshot to the forecast; 1 is the rule itself, 0 is reuse, between them noise is damped.
    coordinate: what a node is, "sigma" (noise level) or "index" (step).
    """

    name: str
    order: int
    gain: float = 1.0
    coordinate: str = "sigma"

    def __post_init__(self):
        if self.name not in MEMBERS:
            raise ValueError(f"predictor must be one of {', '.join(MEMBERS)}, not {self.name!r}.")
        orders = MEMBERS[self.name][1]
        if self.order not in orders:
            raise ValueError(f"order of predictor {self.name} must be {' or '.join(map(str, orders))}, not {self.order!r}.")
        if not 0 <= self.gain <= 2:
            raise ValueError(f"gain must lie between 0 and 2, not {self.gain}.")
        if self.coordinate not in COORDINATES:
            raise ValueError(f"coordinate must be {' or '.join(COORDINATES)}, not {self.coordinate!r}.")

    @property
    def needs(self) -> int:
        """Snapshots worth keeping."""
        return self.order + 1

    def weights(self, nodes: Sequence[float], target: float) -> tuple[float, ...]:
        """Weights of the first min(len(nodes), needs) snapshots for their value at `target`; nodes newest first, in any unit.

        They sum to 1. A snapshot that is not finite or lies where a newer one does, and all behind it, weigh nothing: a short or
        degenerate history falls back to a lower order and in the end to reuse. ValueError without any node.
        """
        nodes = [float(n) for n in nodes[: self.needs]]
        if not nodes:
            raise ValueError("nodes must hold at least one snapshot.")
        older = [self.gain * w for w in MEMBERS[self.name][0](_usable(nodes), target)[1:]]
        if not all(map(math.isfinite, older)):
            older = []
        older += [0.0] * (len(nodes) - 1 - len(older))
        return (1.0 - sum(older), *older)


def _usable(nodes: Sequence[float]) -> list[float]:
    """The newest nodes, up to the first that is not finite or equals a newer one to the accuracy of float32."""
    kept: list[float] = []
    for node in nodes:
        if not math.isfinite(node) or any(math.isclose(node, other, rel_tol=1e-6) for other in kept):
            break
        kept.append(node)
    return kept


PREDICTORS: dict[str, Predictor] = {name: Predictor(name, orders[0]) for name, (_, orders) in MEMBERS.items()}


def predictor(name: str, **changes) -> Predictor:
    """The registered predictor `name`, with fields changed (order, gain, coordinate); ValueError names what is known."""
    if name not in PREDICTORS:
        raise ValueError(f"predictor must be one of {', '.join(PREDICTORS)}, not {name!r}.")
    known = [f.name for f in fields(Predictor) if f.name != "name"]
    for key in changes:
        if key not in known:
            raise ValueError(f"{key} is not a setting of a predictor; it has {', '.join(known)}.")
    return replace(PREDICTORS[name], **changes)
