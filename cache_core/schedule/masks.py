"""Which modules of a model are computed at which steps: a plan finer than full, conservative and aggressive
steps.

Every per-module method of the literature (Learning-to-Cache, HarmoniCa, BAC, ProfilingDiT) ends in such a
table. What a conservative step of it computes it computes on all tokens; everything else is replayed before
its gate and gated anew, or, as ProfilingDiT has it, in runs of neighbouring blocks that are left out for what
each run added."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from ..base.limits import MAX_STEPS
from ..base.wording import named
from .plan import CacheSchedule, explicit

ALL = "*"
"""Name of all modules: a full step."""
PARTS = ("attn", "mlp")
MAX_NAMES, MAX_CELLS = 4096, 1_000_000
_NAME = re.compile(r"[a-z][a-z_]{0,31}\.(0|[1-9][0-9]{0,3})(\.[a-z][a-z_]{0,31})?")


@dataclass(frozen=True)
class Mask:
    """The modules that are computed at each of `steps` steps; immutable and hashable.

    refresh: pairs of a name and the ascending steps at which it is computed. "*" stands for all modules,
        which is a full step, and step 0 always is one; "double.0" for a whole block, "double.0.attn" and
        "double.0.mlp" for its parts.
    runs: whether the other blocks are held back in runs of neighbours, for each of which what it adds to its
        input is kept as it was; every step that is not full then computes the same blocks. Raises ValueError
        naming the field."""

    steps: int
    refresh: tuple[tuple[str, tuple[int, ...]], ...] = field(default=((ALL, (0,)),), repr=False)
    runs: bool = False

    def __post_init__(self) -> None:
        if (
            isinstance(self.steps, bool)
            or not isinstance(self.steps, int)
            or not 1 <= self.steps <= MAX_STEPS
        ):
            raise ValueError(f"mask.steps must be a whole number from 1 to {MAX_STEPS}.")
        found = dict(self.refresh)
        found[ALL] = (0, *found.get(ALL, ()))
        if len(found) > MAX_NAMES:
            raise ValueError(f"mask.refresh must have at most {MAX_NAMES} names.")
        if sum(map(len, found.values())) > MAX_CELLS:
            raise ValueError(f"mask.refresh must list at most {MAX_CELLS} steps in sum.")
        for name, steps in found.items():
            if name != ALL and not (isinstance(name, str) and _NAME.fullmatch(name)):
                raise ValueError(
                    'mask.refresh must have names such as "*", "double.0" or "double.0.attn", not '
                    f"{str(name)[:40]!r}."
                )
            if any(isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < self.steps for s in steps):
                raise ValueError(
                    f"mask.refresh.{name} must be a list of whole numbers from 0 to {self.steps - 1}."
                )
        full = set(found[ALL])
        kept = {
            name: tuple(sorted(set(steps) if name == ALL else set(steps) - full))
            for name, steps in found.items()
        }
        object.__setattr__(self, "refresh", tuple(sorted((n, s) for n, s in kept.items() if s)))
        if not isinstance(self.runs, bool):
            raise ValueError("mask.runs must be true or false.")
        cached = self.steps - len(full)
        if (
            self.runs
            and cached
            and not (
                self.names
                and all(n.count(".") == 1 and len(s) == cached for n, s in self.refresh if n != ALL)
            )
        ):
            raise ValueError(
                "mask.runs needs the same whole blocks, at least one, at every step that is not full."
            )

    @classmethod
    def of(cls, steps: int, refresh: Mapping[str, Iterable[int]], runs: bool = False) -> Mask:
        return cls(steps, tuple((name, tuple(at)) for name, at in refresh.items()), runs)

    @classmethod
    def from_rows(cls, rows: Sequence[Iterable[str]], runs: bool = False) -> Mask:
        """The mask whose step i computes the modules named in rows[i]."""
        refresh: dict[str, list[int]] = {}
        for step, names in enumerate(rows):
            for name in names:
                refresh.setdefault(name, []).append(step)
        return cls.of(len(rows), refresh, runs)

    @cached_property
    def _rows(self) -> tuple[frozenset[str], ...]:
        rows: list[set[str]] = [set() for _ in range(self.steps)]
        for name, steps in self.refresh:
            for s in steps:
                rows[s].add(name)
        return tuple(map(frozenset, rows))

    def at(self, step: int) -> frozenset[str]:
        """Names computed at a step."""
        return self._rows[step]

    @property
    def names(self) -> tuple[str, ...]:
        """All names but "*"."""
        return tuple(name for name, _ in self.refresh if name != ALL)

    @property
    def kinds(self) -> str:
        """F where everything is computed, C where something is, A elsewhere."""
        return "".join("F" if ALL in row else "C" if row else "A" for row in self._rows)

    def schedule(self, name: str = "mask") -> CacheSchedule:
        """The plan of steps that carries this mask."""
        made = explicit(self.kinds)
        return CacheSchedule(made.kinds, made.ratios, name, mask=self.to_json())

    def scaled(self, steps: int) -> Mask:
        """The mask at another step count: every step's names move to the nearest place of the path.

        Steps that meet are united, so that whatever is computed together stays together and nothing is left
        out; with fewer steps a larger share of them is therefore computed. Step 0 stays."""
        if steps == self.steps:
            return self
        rows: list[set[str]] = [set() for _ in range(steps)]
        for s, names in enumerate(self._rows):
            rows[min((2 * s * steps + self.steps) // (2 * self.steps), steps - 1)] |= names
        if self.runs:
            rows = [
                names or set(self.names) for names in rows
            ]  # a step between two others holds back what they do
        return Mask.from_rows(rows, self.runs)

    def held(self, blocks: Sequence[tuple[str, int]]) -> tuple[tuple[int, int], ...]:
        """Places of the first and the last block of each run that is held back; blocks: (kind, index) of a
        model's, in running order.

        A run ends where the kind of block changes, and with it the streams.
        """
        found: list[tuple[int, int]] = []
        for place, (kind, i) in enumerate(blocks):
            if f"{kind}.{i}" in self.names:
                continue
            if found and found[-1][1] == place - 1 and blocks[place - 1] == (kind, i - 1):
                found[-1] = found[-1][0], place
            else:
                found.append((place, place))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        runs = {"runs": True} if self.runs else {}
        return {"steps": self.steps, "refresh": {name: list(steps) for name, steps in self.refresh}, **runs}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def read(cls, data: Any) -> Mask:
        """Reads `to_dict` back or what somebody wrote by hand; ValueError in one sentence that names the
        field."""
        if not isinstance(data, Mapping):
            raise ValueError("mask must be an object with steps and refresh.")
        for key in data:
            if key not in ("steps", "refresh", "runs"):
                raise ValueError(f"{named(key)} is not a field of a mask; it has steps, refresh, runs.")
        refresh = data.get("refresh")
        if not isinstance(refresh, Mapping):
            raise ValueError("mask.refresh must be an object of names and lists of steps.")
        if len(refresh) > MAX_NAMES:
            raise ValueError(f"mask.refresh must have at most {MAX_NAMES} names.")
        for name, steps in refresh.items():
            if not isinstance(steps, (list, tuple)) or len(steps) > MAX_STEPS:
                raise ValueError(f"mask.refresh.{named(name)} must be a list of steps.")
        return cls(
            cast(int, data.get("steps")),  # checked by the constructor
            tuple((name, tuple(steps)) for name, steps in refresh.items()),
            data.get("runs", False),
        )

    @classmethod
    def from_json(cls, text: str) -> Mask:
        """Reads `to_json` back. Raises ValueError as `read` does, or saying that the text is not JSON."""
        try:
            data = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("mask is not valid JSON.") from None
        return cls.read(data)


def parts_of(names: Iterable[str], block: tuple[str, int]) -> frozenset[str]:
    """Which parts of a block (kind, index) are among the names: "attn", "mlp" and the like, or "" for the
    whole."""
    name = ".".join(map(str, block))
    return frozenset(n[len(name) + 1 :] for n in names if n == name or n.startswith(name + "."))
