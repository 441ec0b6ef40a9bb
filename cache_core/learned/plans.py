"""Learned plans and their file: what each of them was fitted for, and which one serves a run.

A file holds plans of one model: several numbers of calls, aims, samplers and guidances, a few kilobytes each,
as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from uuid import uuid4

from ..base.coordinates import same_levels
from ..base.limits import MAX_STEPS
from ..predictors.learned import MOST_WEIGHT, Learned, Row
from ..schedule.plan import CacheSchedule, explicit
from .features import DELTA_CHANGE, FEATURES, FIRST, SECOND, THIRD
from .samplers import SAMPLERS

FORMAT, KIND = 1, "learned_plans"
RUN, EXACT = AIMS = ("run", "exact")
"""What a plan was fitted to: the user's own uncached run, or the exact solution."""
GUIDANCE_RANGE = 0.1
"""How far guidance may differ, relatively: plans of guidance 2 broke pictures at guidance 4."""
MOST_AREA = 2.5
"""How many times larger or smaller than recorded the latent may be."""
LARGEST_FILE = 16 << 20
MOST_PLANS = 1000
LABELS = {
    "model": "the model",
    "quantisation": "the precision of its weights",
    "lora": "the LoRAs",
    "conditioning": "the kind of conditioning",
}


@dataclass(frozen=True)
class LearnedPlan:
    """Full steps and weights for one kind of run.

    aim: of `AIMS`. under: the sampler that it runs under, "" for one of its own. guidance: classifier-free.
    sigmas: the noise levels of the grid. full: places of the full steps on it. weights: for each, by
        `features.FEATURES`. expected: dB to the aim of every calibration caption, run with weights that the
        others gave (latents; energy of the aim over the error's); empty where too few were there.
    ValueError naming the field."""

    aim: str
    under: str
    guidance: float
    sigmas: tuple[float, ...]
    full: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]
    expected: tuple[float, ...] = ()

    def __post_init__(self):
        steps = len(self.sigmas) - 1
        if self.aim not in AIMS:
            raise ValueError(f"aim must be one of {', '.join(AIMS)}, not {repr(self.aim)[:40]}.")
        if self.under and self.under not in SAMPLERS:
            raise ValueError(
                f"under must be one of {', '.join(SAMPLERS)} or empty, not {repr(self.under)[:40]}."
            )
        if not 1 <= steps <= MAX_STEPS or any(not math.isfinite(s) for s in self.sigmas):
            raise ValueError("sigmas must be at least two finite noise levels.")
        if any(after >= now for now, after in zip(self.sigmas, self.sigmas[1:])):
            raise ValueError("sigmas must fall.")
        if not math.isfinite(self.guidance) or self.guidance <= 0:
            raise ValueError("guidance must be a number above 0.")
        if (
            not self.full
            or self.full[0] != 0
            or list(self.full) != sorted(set(self.full))
            or self.full[-1] >= steps
        ):
            raise ValueError("full must hold the places of full steps in their order, the first of them 0.")
        if len(self.weights) != len(self.full) or any(len(row) != len(FEATURES) for row in self.weights):
            raise ValueError(f"weights must hold {len(FEATURES)} numbers for every full step.")
        if not all(math.isfinite(n) and abs(n) <= MOST_WEIGHT for row in self.weights for n in row):
            raise ValueError(f"weights must be finite and at most {MOST_WEIGHT:g}.")
        if not all(map(math.isfinite, self.expected)):
            raise ValueError("expected must be finite.")

    @property
    def calls(self) -> int:
        return len(self.full)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def times(self) -> tuple[float, ...]:
        """Noise levels of the full steps and of the end."""
        return (*(self.sigmas[i] for i in self.full), self.sigmas[-1])

    def quality(self) -> tuple[float, float] | None:
        """Expected dB to the aim, median and worst of the calibration captions, each left out; None where
        they were too few."""
        return (median(self.expected), min(self.expected)) if len(self.expected) > 1 else None

    def after(self, step: int) -> LearnedPlan:
        """The plan of a run that begins at a step of the grid, as with less denoise. That step is full, and
        what leans on steps before it falls away. ValueError where no step is left."""
        if not 0 <= step < self.steps:
            raise ValueError(f"a plan of {self.steps} steps cannot begin at step {step}.")
        rows = {i: row for i, row in zip(self.full, self.weights) if i >= step}
        full = sorted({step, *rows})
        back = {SECOND: 2, THIRD: 3, FIRST: 1, DELTA_CHANGE: 1}
        weights = [
            tuple(
                w if back.get(n, 0) <= k else 0.0
                for n, w in zip(FEATURES, rows.get(i, [0.0] * len(FEATURES)))
            )
            for k, i in enumerate(full)
        ]
        return replace(
            self,
            sigmas=self.sigmas[step:],
            full=tuple(i - step for i in full),
            weights=tuple(weights),
            expected=(),
        )

    def schedule(self) -> CacheSchedule:
        """The plan as full and aggressive steps with its forecast. ValueError for a plan without a sampler to
        run under."""
        if not self.under:
            raise ValueError("this plan is a sampler of its own; it has no steps to skip.")
        full = set(self.full)
        kinds = "".join("F" if i in full else "A" for i in range(self.steps))
        rule = Learned(
            self.steps,
            self.sigmas,
            self.guidance,
            tuple(
                (step, _row(k, row, self.guidance))
                for k, (step, row) in enumerate(zip(self.full, self.weights))
            ),
        )
        return replace(
            explicit(kinds), name="learned", forecast=json.dumps(rule.to_dict()) if "A" in kinds else None
        )


def _row(k: int, weights: Sequence[float], guidance: float) -> Row:
    """A row of `Learned` from weights of features, of full step k."""
    x, w, first, second, third, delta, change = weights
    outputs = (1 + w + first, second - first, third - second, -third)[: k + 1]
    deltas = (delta + change, -change)[: k + 1] if guidance != 1 else ()
    return x, outputs, deltas


@dataclass(frozen=True)
class Plans:
    """A file's plans. identity: texts by the names of `LABELS`, and "area", the smallest and the largest
    number of latent positions recorded."""

    identity: Mapping
    plans: tuple[LearnedPlan, ...] = field(default_factory=tuple)

    def differences(self, identity: Mapping) -> list[str]:
        """What of a run is not as recorded, in sentences' parts; empty where it fits. Fields that the run or
        the file does not tell are not compared."""
        wrong = [
            f"{label} is {identity[name]}, recorded was {self.identity[name]}"
            for name, label in LABELS.items()
            if name in identity and name in self.identity and identity[name] != self.identity[name]
        ]
        area, known = identity.get("area"), self.identity.get("area")
        if area and known and not known[0] / MOST_AREA <= area <= known[1] * MOST_AREA:
            wrong.append(f"the latent has {area} positions, recorded were {known[0]} to {known[1]}")
        return wrong

    def fitting(
        self, aim: str, under: str, guidance: float, sigmas: Sequence[float] | None = None
    ) -> list[LearnedPlan]:
        """Plans for a run, by their number of calls; for noise levels that are the end of a plan's, as with
        less denoise, that end of it. ValueError says what is missing where there is none."""
        found = [p for p in self.plans if p.aim == aim and p.under == under]
        if not found:
            have = sorted({f"{p.aim} under {p.under or 'a sampler of its own'}" for p in self.plans})
            raise ValueError(
                f"no plan has the aim {aim} under {under or 'a sampler of its own'}; there are: "
                f"{'; '.join(have) or 'none'}."
            )
        near = [p for p in found if abs(p.guidance - guidance) <= GUIDANCE_RANGE * p.guidance + 1e-9]
        if not near:
            known = ", ".join(f"{g:g}" for g in sorted({p.guidance for p in found}))
            raise ValueError(
                f"plans were learned at guidance {known} and hold within {GUIDANCE_RANGE:.0%} of it, the run "
                f"has {guidance:g}; record runs at this guidance."
            )
        nearest = min(abs(p.guidance - guidance) for p in near)
        near = [p for p in near if abs(p.guidance - guidance) <= nearest + 1e-9]
        if sigmas is not None:
            tails = [p if p.steps < len(sigmas) else p.after(p.steps + 1 - len(sigmas)) for p in near]
            alike = [p for p in tails if same_levels(p.sigmas, sigmas)]
            if not alike:
                counts = ", ".join(map(str, sorted({p.steps for p in near})))
                raise ValueError(
                    f"plans were learned at {counts} steps and other noise levels than those of this run of "
                    f"{len(sigmas) - 1} steps; use that scheduler, shift and number of steps, or "
                    "record runs of this kind."
                )
            near = alike
        return sorted(near, key=lambda p: p.calls)

    def choose(self, calls: float, *args, **kwargs) -> LearnedPlan:
        """The plan of `fitting` whose number of calls is nearest, the larger one where two are."""
        return min(self.fitting(*args, **kwargs), key=lambda p: (abs(p.calls - calls), -p.calls))

    def merged(self, other: Plans) -> Plans:
        """Both files' plans, those of `other` in place of plans for the same kind of run. ValueError where
        they are of different models."""
        wrong = self.differences({k: v for k, v in other.identity.items() if k != "area"})
        if wrong:
            raise ValueError(f"plans of different kinds cannot be in one file: {wrong[0]}.")
        areas = [a for p in (self, other) for a in p.identity.get("area", ())]
        identity = {
            **self.identity,
            **other.identity,
            **({"area": [min(areas), max(areas)]} if areas else {}),
        }
        new = {_key(p) for p in other.plans}
        return Plans(identity, (*(p for p in self.plans if _key(p) not in new), *other.plans))

    def save(self, path: Path) -> None:
        """Writes the file as a whole or not at all; OSError where it cannot be written."""
        path = Path(path)
        beside = path.with_name(f"{path.name}.{uuid4().hex}.new")
        try:
            beside.write_text(self.to_json(), encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def to_json(self) -> str:
        plans = [asdict(p) for p in self.plans]
        for p in plans:
            p["weights"] = [[float(f"{n:.7g}") for n in row] for row in p["weights"]]
            p["expected"] = [round(d, 2) for d in p["expected"]]
        head = json.dumps({"format": FORMAT, "kind": KIND, "identity": dict(self.identity)}, allow_nan=False)
        rows = ",\n ".join(json.dumps(p, allow_nan=False) for p in plans)
        return f'{head[:-1]}, "features": {json.dumps(FEATURES)}, "plans": [\n {rows}\n]}}\n'

    @classmethod
    def load(cls, path: Path) -> Plans:
        """Reads a file; ValueError in one sentence where it holds no learned plans."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path.name} is not there.")
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path.name} is too large for learned plans.")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path.name} cannot be read: {type(error).__name__}.") from None
        except ValueError as error:
            raise ValueError(f"{path.name} holds no learned plans: {str(error).rstrip('.')}.") from None

    @classmethod
    def from_json(cls, text: str) -> Plans:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("it is not valid JSON.") from None
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise ValueError(f'its kind is not "{KIND}".')
        if data.get("format") != FORMAT or data.get("features") != list(FEATURES):
            raise ValueError("it was written by another version of the pack.")
        identity, plans = data.get("identity"), data.get("plans")
        if not isinstance(identity, dict) or not isinstance(plans, list) or len(plans) > MOST_PLANS:
            raise ValueError(f"it lacks an identity or a list of at most {MOST_PLANS} plans.")
        area = identity.get("area", [1, 1])
        if not (isinstance(area, list) and len(area) == 2 and all(_whole(n) and n > 0 for n in area)):
            raise ValueError("its area must be two whole numbers.")
        return cls(identity, tuple(_plan(p) for p in plans))


def _key(plan: LearnedPlan) -> tuple:
    return plan.aim, plan.under, round(plan.guidance, 3), plan.calls, tuple(round(s, 4) for s in plan.sigmas)


def _whole(n) -> bool:
    return isinstance(n, int) and not isinstance(n, bool)


def _real(n) -> bool:
    return isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < 1e30


def _plan(data) -> LearnedPlan:
    """From JSON; ValueError naming the field."""
    if not isinstance(data, dict):
        raise ValueError("a plan must be an object.")
    lists: dict[str, list] = {}
    for name in ("sigmas", "full", "weights", "expected"):
        value = data.get(name)
        if not isinstance(value, list) or len(value) > MAX_STEPS + 1:
            raise ValueError(f"{name} of a plan must be a list.")
        lists[name] = value
    if not all(map(_real, [*lists["sigmas"], *lists["expected"], data.get("guidance")])):
        raise ValueError("sigmas, expected and guidance of a plan must be numbers.")
    if not all(map(_whole, lists["full"])):
        raise ValueError("full of a plan must hold whole numbers.")
    if not all(isinstance(row, list) and all(map(_real, row)) for row in lists["weights"]):
        raise ValueError("weights of a plan must be lists of numbers.")
    if not isinstance(data.get("aim"), str) or not isinstance(data.get("under"), str):
        raise ValueError("aim and under of a plan must be texts.")
    return LearnedPlan(
        data["aim"],
        data["under"],
        float(data["guidance"]),
        tuple(map(float, lists["sigmas"])),
        tuple(lists["full"]),
        tuple(tuple(map(float, row)) for row in lists["weights"]),
        tuple(map(float, lists["expected"])),
    )
