"""What a run's caches may hold: the estimate against the budget, and what gives way when they would not fit.

The check is made before the first block of every kind runs on a full step, when the sizes of the tokens are
known and nothing has been kept yet. What does not fit is lowered there, and the call is repeated from its
beginning; the expensive blocks have not run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from ..base.names import OUTPUT
from ..base.wording import size
from ..config import CacheConfig
from ..models.families import Block
from ..schedule.masks import Mask
from .estimate import Footprint, Shapes, Sizes, footprint

WINDOW = 2
"""Sites whose snapshots lie on the model's device at once while the others are kept elsewhere: the one in use
and the next."""


@dataclass(frozen=True)
class Budget:
    """Bytes that caches may take.

    limit: on the model's device. elsewhere: of main memory, for snapshots between two uses; 0 where the model
        runs in main memory itself.
    branches: that an evaluation is expected to have (2 for guidance), of which the first call may show fewer.
    """

    limit: float = inf
    elsewhere: float = 0
    branches: int = 1


@dataclass(frozen=True)
class Wanted:
    """What a model's branches are cached by: its fitted settings, blocks, and the rest as `footprint` takes
    it."""

    settings: CacheConfig
    kinds: str
    ratios: Sequence[float]
    mask: Mask | None
    blocks: Sequence[Block]
    first: int
    conserves: bool

    def of(self, shapes: Shapes) -> Footprint:
        return footprint(
            self.settings, self.kinds, self.ratios, self.mask, self.blocks, shapes, self.first, self.conserves
        )


class Memory:
    """The estimate of one run, as far as its branches are known.

    stages: evaluations per step, each with branches of its own.
    """

    def __init__(self, budget: Budget | None = None, stages: int = 1):
        self.budget, self.stages = budget or Budget(), stages
        self.estimate = 0
        """Bytes expected at the worst moment, as known so far."""
        self._output, self._settled = 0, False
        self._seen: dict[Hashable, tuple[Hashable, Shapes]] = {}

    def expect(self, wanted: Wanted, shapes: Shapes) -> int:
        """The estimate before the first call."""
        self._output = shapes.output
        self.estimate = wanted.of(shapes).total * self.budget.branches * self.stages
        return self.estimate

    def settle(self) -> None:
        """Every branch of a step has been met."""
        self._settled = True

    def forget(self, keys: Iterable[Hashable]) -> None:
        """Branches that were freed."""
        for key in keys:
            self._seen.pop(key, None)

    def note(
        self, model: Hashable, keys: Iterable[Hashable], kind: str, sizes: Sizes, item: int, samples: int
    ) -> bool:
        """Takes the sizes of what goes into a kind of block of a model, or of its output, for these branches;
        whether they are new."""
        news = False
        for key in keys:
            _, old = self._seen.get(key, (model, Shapes({}, self._output)))
            if kind == OUTPUT[0]:
                new = replace(
                    old, output=sum(n * d for n, d in sizes.values()), bytes_per_value=item, samples=samples
                )
            else:
                new = replace(
                    old, blocks={**old.blocks, kind: dict(sizes)}, bytes_per_value=item, samples=samples
                )
            if self._seen.get(key) != (model, new):
                news, self._seen[key] = True, (model, new)
        return news

    def needs(self, wanted: Mapping[Hashable, Wanted]) -> Footprint:
        """All branches together, also those that are expected and have not been met; `wanted` by model."""
        parts: dict[tuple, Footprint] = {}
        each = []
        for model, shapes in self._seen.values():
            mark = (
                model,
                tuple((k, tuple(d.items())) for k, d in shapes.blocks.items()),
                shapes.output,
                shapes.samples,
            )
            if mark not in parts:
                parts[mark] = wanted[model].of(shapes)
            each.append(parts[mark])
        if not each:
            return Footprint()
        share = 1.0 if self._settled else max(1.0, self.budget.branches * self.stages / len(each))
        return Footprint(
            round(share * sum(f.snapshots for f in each)),
            round(share * sum(f.rest for f in each)),
            max(f.largest for f in each),
            round(share * sum(f.pinned for f in each)),
        )

    def fits(self, need: Footprint, away: bool) -> bool:
        """Whether this may be held, all of it on the model's device or as many snapshots as must be
        elsewhere."""
        if not away:
            return need.total <= self.budget.limit
        room = self.room_beside(need)
        if room < 0:
            return False
        share = 1 - min(1.0, room / need.snapshots) if need.snapshots else 0.0
        return share * need.pinned <= self.budget.elsewhere

    def room_beside(self, need: Footprint) -> float:
        """Bytes for snapshots that stay on the device while others are elsewhere, beside those in use;
        negative where not even these fit."""
        window = min(need.snapshots, WINDOW * need.largest * self.budget.branches)
        return self.budget.limit - need.rest - window

    def moved(self, need: Footprint, room: float) -> str:
        """What keeping snapshots elsewhere means, for `too_much`."""
        away = need.snapshots - min(room, need.snapshots)
        return (
            f"about {size(round(away))} of the {size(need.snapshots)} of snapshots are kept in main memory "
            "between two uses"
        )

    def too_much(self, need: Footprint, words: str) -> str:
        """The sentence about what gave way."""
        return (
            f"The caches would need about {size(need.total)}, and {size(self.budget.limit)} are "
            f"allowed: {words}."
        )
