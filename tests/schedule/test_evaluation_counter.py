"""Which step and phase an evaluation belongs to, for samplers of every kind."""

import pytest

from cache_core.schedule.evaluation_counter import EvaluationCounter
from cache_core.schedule.sampler_traits import adds_noise, stages_of


def places(stages, steps, evaluations):
    clock = EvaluationCounter(steps, stages)
    ticks = [clock.tick(1.0) for _ in range(evaluations)]
    return [(t.step, t.phase) for t in ticks], [t.beyond for t in ticks]


def test_evaluations_are_counted_into_steps():
    assert places(1, 3, 4) == ([(0, 0), (1, 0), (2, 0), (3, 0)], [False, False, False, True])
    assert places(2, 2, 5) == ([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)], [False] * 4 + [True])


def test_a_sampler_that_looks_ahead_has_fewer_evaluations_at_the_end():
    stages = stages_of("sample_heunpp2", 4)
    assert stages == (3, 3, 2, 1)
    steps, beyond = places(stages, 4, 10)
    assert [s for s, _ in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 3, 4] and beyond == [False] * 9 + [True]
    assert [p for _, p in steps] == [0, 1, 2, 0, 1, 2, 0, 1, 0, 0]


def test_unknown_and_adaptive_samplers_have_one():
    assert stages_of("sample_of_tomorrow", 9) == stages_of("dpm_adaptive_function", 9) == 1
    assert stages_of("sample_heun", 9) == 2


def test_going_back_to_a_higher_level_is_told():
    clock = EvaluationCounter(4)
    assert [clock.tick(s).rising for s in (1.0, 0.5, 0.6, 0.602, 0.3)] == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("name", "adds"),
    [
        ("sample_euler", False),
        ("sample_dpmpp_2m", False),
        ("sample_unipc", False),
        ("sample_euler_ancestral", True),
        ("sample_dpmpp_2m_sde", True),
        ("sample_lcm", True),
        ("sample_seeds_3", True),
    ],
)
def test_samplers_that_add_fresh_noise_are_known_by_name(name, adds):
    assert adds_noise(name) == adds
