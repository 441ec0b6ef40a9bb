"""How a skipped feature is rebuilt: weights over past snapshots, which depend only on where the snapshots lie
and where they are wanted.

A new member is a rule (nodes, target, predictor) -> weights, nodes newest first, and one row of `MEMBERS`.
The frame below cares for short histories, unusable nodes, the gain, the horizon, and a sum of exactly 1.

Names used by the rules: k is the way to the target in units of the newest gap, D1 = F0 - F1 and D2 the second
    difference of the newest snapshots F0, F1, F2, both taken as divided differences on the true nodes, so
    that unequal gaps are right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch

from ..base.coordinates import COORDINATES
from ..base.wording import named
from ..cache.feature_predictor import FeaturePredictor

Rule = Callable[[Sequence[float], float, "Predictor"], Sequence[float]]
HORIZONS = ("scaled", "fixed")


def _lagrange(nodes, target, _):
    """The polynomial through all nodes: reuse of one, Newton's line of two, and so on (TaylorSeer corrected,
    AB-Cache)."""
    return [math.prod((target - b) / (a - b) for b in nodes if b != a) for a in nodes]


def _levels(nodes) -> list[list[float]]:
    """Weights of TaylorSeer's factors at the newest node: each difference is divided by the gap behind its
    own snapshot, as published."""
    n = len(nodes)
    rows = [[float(i == j) for j in range(n)] for i in range(n)]
    levels = [rows[0]]
    for _ in nodes[1:]:
        rows = [
            [(a - b) / (nodes[i] - nodes[i + 1]) for a, b in zip(rows[i], rows[i + 1])]
            for i in range(len(rows) - 1)
        ]
        levels.append(rows[0])
    return levels


def _series(terms: Sequence[float], nodes) -> list[float]:
    """Sum of the factors times `terms`, one per order."""
    return [sum(t * w for t, w in zip(terms, column)) for column in zip(*_levels(nodes))]


def _taylor(nodes, target, _):
    return _series([(target - nodes[0]) ** i / math.factorial(i) for i in range(len(nodes))], nodes)


def _hermite(nodes, target, p):
    """TaylorSeer's powers x^i replaced by s^i H_i(s x), s the damping, x in steps."""
    x, s = target - nodes[0], p.damping
    h = [1.0, 2 * s * x]
    for i in range(1, len(nodes)):
        h.append(2 * s * x * h[i] - 2 * i * h[i - 1])
    return _series([s**i * h[i] / math.factorial(i) for i in range(len(nodes))], nodes)


def _adams_bashforth(nodes, target, _):
    """F0 plus the integral of the polynomial through the slopes, each taken over the gap behind its node."""
    knots = nodes[:-1]
    if not knots:
        return [1.0]
    out = [1.0] + [0.0] * len(knots)
    for i, x in enumerate(knots):
        area = _integral(x, [b for b in knots if b != x], nodes[0], target) / (x - nodes[i + 1])
        out[i] += area
        out[i + 1] -= area
    return out


def _integral(at: float, others: Sequence[float], start: float, end: float) -> float:
    """Integral of the Lagrange basis polynomial that is 1 at `at` and 0 at `others`."""
    poly = [1.0]
    for b in others:
        scaled = [c / (at - b) for c in poly]
        poly = [low - b * high for low, high in zip([0.0, *scaled], [*scaled, 0.0])]
    return sum(c * (end ** (i + 1) - start ** (i + 1)) / (i + 1) for i, c in enumerate(poly))


def _curve(slope: Callable[[float], float], bend: Callable[[float], float]) -> Rule:
    """The rule F0 + slope(k) D1 + bend(k) D2; bend is left out behind the newest snapshot, where these forms
    mean nothing."""

    def rule(nodes, target, _):
        if len(nodes) == 1:
            return [1.0]
        gap = nodes[0] - nodes[1]
        k = (target - nodes[0]) / gap
        out = [1 + slope(k), -slope(k), 0.0][: len(nodes)]
        if len(nodes) > 2 and k > 0:
            x, y, z = nodes
            second = 1 / ((x - y) * (x - z)), 1 / ((y - x) * (y - z)), 1 / ((z - x) * (z - y))
            out = [w + 2 * gap**2 * bend(k) * d for w, d in zip(out, second)]
        return out

    return rule


def _mean_velocity(nodes, target, _):
    """F0 plus the way to the target times (mean - oldest) / window, the mean being over a path that holds
    each snapshot until the next."""
    window = target - nodes[-1]
    if not window:
        return [1.0] + [0.0] * (len(nodes) - 1)
    ends = [target, *nodes]
    share = (target - nodes[0]) / window
    out = [share * (ends[i] - x) / window for i, x in enumerate(nodes)]
    out[0] += 1
    out[-1] -= share
    return out


def _chebyshev(constant: float) -> Rule:
    """Ridge fit of Chebyshev polynomials to all nodes, blended with a line; `constant` scales the penalty of
    the constant term."""

    def rule(nodes, target, p):
        low, high = p.span

        def basis(x):
            t = 2 * (x - low) / (high - low) - 1
            row = [1.0, t]
            for _ in range(p.order - 1):
                row.append(2 * t * row[-1] - row[-2])
            return row

        phi = torch.tensor([basis(x) for x in nodes], dtype=torch.float64)
        penalty = torch.full((p.order + 1,), p.ridge, dtype=torch.float64)
        penalty[0] *= constant
        # The pseudo-inverse is the ridge solution, and the smallest one where a short history without ridge
        # leaves it open.
        solved = torch.linalg.pinv(torch.cat((phi, penalty.sqrt().diag())))[:, : len(nodes)]
        fit = (torch.tensor(basis(target), dtype=torch.float64) @ solved).tolist()
        line = _lagrange(nodes[:2], target, p) + [0.0] * (len(nodes) - 2)
        return [p.blend * a + (1 - p.blend) * b for a, b in zip(fit, line)]

    return rule


@dataclass(frozen=True)
class Member:
    """A row of the table.

    orders: it may have, its default first. extra: snapshots it needs beyond its order, None for as many as
        there are. sums_to_one: False only for a published form that does not. steps_only: its numbers are
        meant in steps."""

    rule: Rule
    orders: tuple[int, ...]
    source: str
    extra: int | None = 1
    sums_to_one: bool = True
    steps_only: bool = False


_TAYLORSEER, _HYCA = "TaylorSeer, arXiv 2503.06923", "member of HyCa's pool, arXiv 2510.04188"
MEMBERS: dict[str, Member] = {
    "reuse": Member(_lagrange, (0,), "FORA, arXiv 2407.01425; DuCa, arXiv 2412.18911"),
    "linear": Member(_lagrange, (1,), "Newton's line on the true nodes; TaylorSeer of order 1"),
    "newton": Member(
        _lagrange,
        (2, 1, 3, 4),
        f"Newton's polynomial on the true nodes: {_TAYLORSEER}, corrected; AB-Cache, arXiv "
        "2504.10540, whose order counts the snapshots and is one higher",
    ),
    "taylor": Member(_taylor, (1, 2, 3, 4), f"{_TAYLORSEER}, its finite differences as published"),
    "adams_bashforth": Member(
        _adams_bashforth, (2, 3, 4, 5), f"Adams-Bashforth on backward slopes; order 2 is a {_HYCA}"
    ),
    "rk2": Member(_curve(lambda k: k, lambda k: -k / 2), (2,), f"midpoint slope, {_HYCA}"),
    "bdf2": Member(_curve(lambda k: k / 3, lambda k: 0.0), (1,), f"BDF2 without its slope, {_HYCA}"),
    "adams_moulton": Member(
        _curve(lambda k: k, lambda k: k**2 * (3 + 4 * k) / (12 * (1 + k))),
        (2,),
        f"Adams-Moulton on an Adams-Bashforth forecast, {_HYCA}",
    ),
    "foca": Member(
        _curve(lambda k: k, lambda k: k * (1 + k) / (2 * (1 + 2 * k))),
        (2,),
        "FoCa, arXiv 2508.16211, its BDF2 forecast alone, the form that L2P (arXiv 2604.26365) reports",
    ),
    "foca_heun": Member(
        _curve(lambda k: k, lambda k: k / 2),
        (2,),
        "FoCa, arXiv 2508.16211, calibrated with the Heun step as it is written",
    ),
    "hermite": Member(_hermite, (2, 1, 3, 4), "HiCache, after a secondary description", steps_only=True),
    "mean_velocity": Member(
        _mean_velocity, (2, 1, 3, 4, 5), "MeanCache, arXiv 2601.19961; its window K is order + 1"
    ),
    "chebyshev": Member(
        _chebyshev(0.0), (4, 2, 3), "Spectrum's ridge fit with its constant term unpenalised", extra=None
    ),
    "spectrum": Member(
        _chebyshev(1.0),
        (4, 2, 3),
        "Spectrum, CVPR 2026, as published: the ridge penalises the constant term too and "
        "shrinks the feature",
        extra=None,
        sums_to_one=False,
    ),
}
MOST_SNAPSHOTS = 100
"""Spectrum's longest history."""


@dataclass(frozen=True)
class Predictor(FeaturePredictor):
    """One way to rebuild a feature from up to `needs` snapshots.

    name: a key of `MEMBERS`. order: of the rule, which looks at order + 1 snapshots in most cases.
    gain: 0..2, scales the way from the newest snapshot to the forecast; 1 is the rule itself, 0 is reuse,
        between them noise is damped.
    coordinate: what a node is, "sigma" (noise level), "index" (step) or "log_snr".
    horizon: "scaled" places the target where it is; "fixed" gives the weights of one whole gap ahead wherever
        the target lies, which is how
        HyCa's pool is written down (what it does inside an interval is not documented).
    damping: of hermite. ridge, blend: of chebyshev and spectrum. span: where the coordinate of a run begins
        and ends, for both; the
        controller sets it. Raises ValueError naming the field.
    """

    name: str
    order: int
    gain: float = 1.0
    coordinate: str = "sigma"
    horizon: str = "scaled"
    damping: float = 0.5
    ridge: float = 0.1
    blend: float = 0.5
    span: tuple[float, float] = (0.0, 50.0)

    def __post_init__(self):
        member = MEMBERS.get(self.name) if isinstance(self.name, str) else None
        if member is None:
            raise ValueError(f"predictor must be one of {', '.join(MEMBERS)}, not {self.name!r}.")
        if type(self.order) is not int or self.order not in member.orders:
            raise ValueError(
                f"order of predictor {self.name} must be {' or '.join(map(str, sorted(member.orders)))}, "
                f"not {self.order!r}."
            )
        for name, known in (("coordinate", COORDINATES), ("horizon", HORIZONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, not {getattr(self, name)!r}.")
        for name, low, high in (("gain", 0, 2), ("damping", 0, 1), ("ridge", 0, 1e6), ("blend", 0, 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name} must lie between {low} and {high:g}, not {value!r}.")
        if member.steps_only and self.coordinate != "index":
            raise ValueError(
                f"coordinate of predictor {self.name} must be index, because its numbers count steps."
            )
        if member.extra is None and self.horizon != "scaled":
            raise ValueError(
                f"horizon of predictor {self.name} must be scaled, because it fits a curve to the whole run."
            )
        if (
            not isinstance(self.span, tuple)
            or len(self.span) != 2
            or not all(isinstance(x, (int, float)) for x in self.span)
            or not -math.inf < self.span[0] < self.span[1] < math.inf
        ):
            raise ValueError(f"span must be two rising numbers, not {self.span!r}.")

    @property
    def needs(self) -> int:
        """Snapshots worth keeping."""
        extra = MEMBERS[self.name].extra
        return MOST_SNAPSHOTS if extra is None else self.order + extra

    def over(self, first: float, last: float) -> Predictor:
        """The predictor for a run whose coordinate goes from one value to another."""
        usable = math.isfinite(first) and math.isfinite(last) and first != last
        return replace(self, span=(min(first, last), max(first, last))) if usable else self

    def weights(self, nodes: Sequence[float], target: float) -> tuple[float, ...]:
        """Weights of the first min(len(nodes), needs) snapshots for their value at `target`; nodes newest
        first, in any unit.

        They sum to 1 (but for spectrum). A snapshot that is not finite or lies where a newer one does, and
        all behind it, weigh nothing: a short or degenerate history falls back to a lower order and in the end
        to reuse. ValueError without any node."""
        nodes = tuple(float(n) for n in nodes[: self.needs])
        if not nodes:
            raise ValueError("nodes must hold at least one snapshot.")
        return _weights(self, nodes, float(target))

    def over_run(self, first, last) -> Predictor:
        """The predictor for a run from one node to another."""
        return self.over(first.at(self.coordinate), last.at(self.coordinate))

    def lower(self) -> list[Predictor]:
        """The same rule at every order from its lowest to its own; [self] where it has one order only."""
        orders = [o for o in sorted(MEMBERS[self.name].orders) if o <= self.order]
        return [replace(self, order=o) for o in orders]

    def forecast(self, site, node, out=None):
        """The value of `site` at `node`; `out` as in `Site.combine`."""
        return site.combine(
            self.weights([n.at(self.coordinate) for n in site.nodes], node.at(self.coordinate)), out
        )

    def to_dict(self) -> dict:
        """The fields that differ from the registered predictor, as JSON; `span` belongs to a run."""
        plain = PREDICTORS[self.name]
        return {
            "name": self.name,
            **{
                f.name: getattr(self, f.name)
                for f in fields(self)
                if f.name not in ("name", "span") and getattr(self, f.name) != getattr(plain, f.name)
            },
        }


LARGEST = 1e4
"""Sum of absolute weights above which the oldest snapshot is left out, as noise would swamp the feature."""


@lru_cache(maxsize=4096)
def _weights(p: Predictor, nodes: tuple[float, ...], target: float) -> tuple[float, ...]:
    """Every site of a step asks for the same weights, hence the cache."""
    member, usable = MEMBERS[p.name], _usable(nodes)
    if len(usable) < 2 or not math.isfinite(target):
        return (1.0, *[0.0] * (len(nodes) - 1))
    if p.horizon == "fixed":
        usable, target = [-float(i) for i in range(len(usable))], 1.0
    try:
        found = [p.gain * w for w in member.rule(usable, target, p)]
    except (ZeroDivisionError, OverflowError):
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        found = [p.gain]
    if sum(map(abs, found)) > LARGEST:  # nodes that nearly coincide
        shorter = _weights(p, nodes[: len(usable) - 1], target)
        return (*shorter, *[0.0] * (len(nodes) - len(shorter)))
    older = found[1:] + [0.0] * (len(nodes) - len(found))
    return (1.0 - sum(older) if member.sums_to_one else found[0] + 1.0 - p.gain, *older)


def _usable(nodes: Sequence[float]) -> list[float]:
    """The newest nodes, up to the first that is not finite or equals a newer one to the accuracy of
    float32."""
    kept: list[float] = []
    for node in nodes:
        if not math.isfinite(node) or any(math.isclose(node, other, rel_tol=1e-6) for other in kept):
            break
        kept.append(node)
    return kept


PREDICTORS: dict[str, Predictor] = {
    name: Predictor(name, m.orders[0], coordinate="index" if m.steps_only else "sigma")
    for name, m in MEMBERS.items()
}


def predictor(name: str, **changes) -> Predictor:
    """The registered predictor `name`, with fields changed (order, gain, coordinate ...); ValueError names
    what is known."""
    if not isinstance(name, str) or name not in PREDICTORS:
        raise ValueError(f"predictor must be one of {', '.join(PREDICTORS)}, not {name!r}.")
    known = [f.name for f in fields(Predictor) if f.name not in ("name", "span")]
    for key in changes:
        if key not in known:
            raise ValueError(f"{named(key)} is not a setting of a predictor; it has {', '.join(known)}.")
    return replace(PREDICTORS[name], **changes)
