"""A short cut of each question of the stress run, on the embedded model; `bash scripts/stress.sh` asks them
at length.

The scenes of lifecycle compare with another process, so they stand for determinism too.
"""

import pytest
import torch

from stress import branches, lifecycle, others, paths, samplers

SHORT = {
    "samplers": samplers.cases(["heunpp2", "dpmpp_sde"], ["beta"]),
    "branches": branches.cases(["Perp-Neg", "two experts"]),
    "lifecycle": lifecycle.cases(
        ["out of memory at a random operation", "two clones, two settings"], times=1, memory=False
    ),
    "paths": paths.cases(
        ["up and down again", "device with an ending", "link to a file", "link to a folder"]
    ),
    "others": others.cases(["8-bit packed weights, as GGUF"]),
}


CASES = [
    pytest.param(case, id=f"{question}: {name}") for question, found in SHORT.items() for name, case in found
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Should have ta")  # torchsde's rounding
def test_a_case_of_the_stress_run_holds(case):
    row = case()
    assert row.ok, row.said


COMPILED = [name for name in others.CASES if name.startswith("torch.compile")]
LONG = ("before", "in place")
"""Ways to compile that only differ in when: `after` and `of every block` take the same paths."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.long] if n.endswith(LONG) else []) for n in COMPILED],
)
def test_a_compiled_model_is_cached(name, monkeypatch):
    """With a backend that only traces, which is quick; the stress run has inductor where it can."""
    monkeypatch.setattr(others, "BACKEND", "eager")
    torch._dynamo.reset()
    row = others.compose(name)
    torch._dynamo.reset()
    assert row.ok, row.said
