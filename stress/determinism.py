"""The same seed gives the same picture, again and in another process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

from . import fresh  # before all of ComfyUI

import torch  # isort: skip

from .rows import Deadline, Row, tried  # isort: skip

STEPS = {"steps": 8, "cfg": 2.0, "seed": 3}
RUNS = {f"{preset}, {sampler}": {"preset": preset, "sampler": sampler, **STEPS}
        for preset, sampler in (("balanced", "euler"), ("duca", "euler"), ("toca", "euler"), ("adaptive", "euler"), ("dicache", "euler"),
                                ("hyca", "euler"), ("balanced", "dpmpp_sde"), ("duca", "heun"), ("spectrum", "dpmpp_2m"))}


@cache
def elsewhere(names: tuple[str, ...]) -> dict:
    """Runs in another process, the last first."""
    return dict(zip(reversed(names), fresh.latents([RUNS[name] for name in reversed(names)])))


def again(name: str, among: tuple[str, ...]) -> Row:
    """Twice here and once elsewhere, with the global random state and the thread's history changed in between."""
    first = fresh.run(RUNS[name])
    torch.rand(17)
    wrong = [] if torch.equal(first, fresh.run(RUNS[name])) else ["another result in the same process"]
    if not torch.equal(first, elsewhere(among)[name]):
        wrong.append("another result in another process")
    return Row(name, not wrong, "; ".join(wrong) or "equal twice here and in another process")


def cases(names=None) -> list:
    among = tuple(RUNS if names is None else names)
    return [(name, partial(again, name, among)) for name in among]


def rows(deadline: Deadline, names=None) -> Iterator[Row]:
    """One row per run."""
    yield from tried(cases(names), deadline)
