"""The branches of a run: everything that is cached of each conditioning, and when it was last used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from ..cache.feature_cache import Branch
from ..cache.offload import OffloadStore
from ..selectors import token_selection


class BranchStore:
    """Branches by key. offloaded: where snapshots lie in main memory, or None while they stay on the
    device."""

    def __init__(self):
        self.offloaded: OffloadStore | None = None
        self._branches: dict[tuple, Branch] = {}
        self._used: dict[tuple, int] = {}
        self._occurrences: Counter = Counter()
        self._full_steps = (0, 0)
        self._last_full: dict[int, int] = {}

    def begin(self) -> None:
        """An evaluation begins."""
        self._occurrences.clear()

    def keys(self, common: tuple, chunks: Sequence[Hashable]) -> list[tuple]:
        """A key for every chunk of a call. The same branch may be evaluated several times in an evaluation;
        each occurrence keeps its own cache."""
        keys: list[tuple] = []
        for chunk in chunks:
            key = (*common, chunk)
            keys.append((key, self._occurrences[key]))
            self._occurrences[key] += 1
        return keys

    def _new(self, key: tuple) -> Branch:
        """An empty branch that knows which conditioning it is of."""
        branch = Branch(self.offloaded)
        branch.evidence.branch = key[0][-1]
        return branch

    def take(self, keys: Sequence[tuple], step: int) -> list[Branch]:
        """The branches of a call at a step; new ones where a key has not been seen."""
        self._used.update(dict.fromkeys(keys, step))
        return [self._branches.get(key) or self._branches.setdefault(key, self._new(key)) for key in keys]

    def renew(self, keys: Sequence[tuple]) -> list[Branch]:
        """Empty branches in place of those of a call."""
        branches = [self._new(key) for key in keys]
        self._branches.update(zip(keys, branches))
        return branches

    def renew_model(self, model: int) -> None:
        """Empty branches in place of all of a model's; model: its id, the first part of their keys."""
        of_model = [key for key in self._branches if key[0][0] == model]
        self._branches.update((key, self._new(key)) for key in of_model)

    def ran(self, kind: str, phase: int, step: int, branches: Sequence[Branch]) -> int:
        """A call begins to run; gives the steps since the last full one of its phase."""
        if kind == "F":
            self._last_full[phase] = step
            for branch in branches:
                branch.full_at = step
            for branch in branches:
                branch.forget_choices()
        return step - self._last_full.get(phase, step)

    def forget_unused(self, step: int) -> list[tuple]:
        """Frees branches that no step has used since the full step before the last, such as those of context
        windows that have moved on; gives their keys."""
        older, self._full_steps = self._full_steps[0], (self._full_steps[1], step)
        unused = [key for key, used in self._used.items() if used < older]
        for key in unused:
            del self._used[key]
            self._branches.pop(key, None)
        return unused

    def offload(self, fits: bool, room: float = 0) -> bool:
        """Begins to keep snapshots in main memory, where they fit and are not there yet.

        room: bytes of snapshots that may stay on the device."""
        self.offloaded = OffloadStore(room) if self.offloaded is None and fits else None
        return self.offloaded is not None

    def drop(self) -> None:
        """Frees every tensor; the running call may hold its branches, so they are cleared first."""
        for branch in self._branches.values():
            branch.clear()
        if self.offloaded is not None:
            self.offloaded.clear()
        self._branches.clear()
        token_selection.forget()

    def values(self) -> list[Branch]:
        return list(self._branches.values())

    @property
    def bytes(self) -> int:
        return sum(branch.bytes for branch in self._branches.values())

    def __len__(self) -> int:
        return len(self._branches)
