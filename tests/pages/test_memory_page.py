"""The sizes behind docs/memory.md are those worked out by hand."""

import pytest

from cache_core.config import CacheConfig
from cache_core.schedule.plan import explicit
from tools import memory_page as make_memory


@pytest.mark.parametrize(
    ("name", "level", "values"),
    [
        ("FLUX.1-dev, 1024 x 1024", "final", 4608 * 3072),
        ("FLUX.1-dev, 1024 x 1024", "module", (2 * 19 + 38) * 4608 * 3072),
        ("Wan 2.1 and 2.2 14B, 832 x 480, 81 frames", "block", 40 * 32760 * 5120),
        ("Wan 2.1 and 2.2 14B, 832 x 480, 81 frames", "module", 3 * 40 * 32760 * 5120),
        ("Qwen-Image, 1328 x 1328", "output", 16 * 166 * 166),
    ],
)
def test_sizes_worked_out_by_hand(name, level, values):
    (real,) = [r for r in make_memory.REAL if r.name == name]
    assert make_memory.needed(real, CacheConfig(schedule=explicit("FA"), level=level)) == 2 * values
