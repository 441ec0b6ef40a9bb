"""How a call chooses the rows of its blocks: all at once, as it would choose them one by one."""

import pytest
import torch

from cache_core.base.coordinates import Node
from cache_core.cache.feature_cache import Batch, Branch
from cache_core.config import CacheConfig
from cache_core.hooks.call_context import Call
from cache_core.selectors import token_selection
from cache_core.selectors.token_selection import Selector

NAMES = tuple(("double", i) for i in range(3)) + tuple(("single", i) for i in range(4))
TEXT, IMAGE = 6, 20


def call_at(step, branches, selector, names, ratio=0.3):
    settings = CacheConfig(selector=selector, seed=5)
    batch = Batch(branches, Node(float(step), 1.0))
    call = Call("C", batch, settings, step, step + 1, ratio, (4, 5), block_names=names)
    call.batch_size = len(branches)
    return call


def rows_at(step, branches, selector, names):
    call = call_at(step, branches, selector, names)
    return {
        (name, stream): call.choose(name, stream, n, "cpu")
        for name in NAMES
        for stream, n in (("txt", TEXT), ("img", IMAGE))
    } | {name: call.choose_joint(name, TEXT, IMAGE, "cpu") for name in NAMES[3:]}


@pytest.mark.parametrize(
    "selector",
    [Selector(), Selector(staleness=0.0), Selector(stratified=False), Selector(spatial_bonus=0.5)],
    ids=["default", "no staleness", "overall", "bonus"],
)
@pytest.mark.parametrize("count", [1, 2])
def test_rows_chosen_at_once_are_those_chosen_one_by_one(selector, count):
    together, apart = ([Branch() for _ in range(count)] for _ in range(2))
    for step in (1, 2, 4):
        first = rows_at(step, together, selector, NAMES)
        if step > 1 and not selector.staleness:
            assert not together[0].refreshed
        one = call_at(step, apart, selector, ())
        for key, rows in first.items():
            if len(key) == 2 and isinstance(key[0], tuple):
                name, stream = key
                expected = one.choose(name, stream, TEXT if stream == "txt" else IMAGE, "cpu")
                assert torch.equal(rows, expected), (step, key)
            else:
                text, image = first[key, "txt"], first[key, "img"]
                assert torch.equal(rows, torch.cat([text, image + TEXT], 1)), (step, key)
    for branch in together:
        branch.forget_choices()
        assert not branch.refreshed


def test_one_draw_serves_all_blocks_of_a_stream(monkeypatch):
    drawn, real = [], token_selection.draw

    def draw(seeds, n, device):
        drawn.append((len(seeds), n))
        return real(seeds, n, device)

    monkeypatch.setattr("cache_core.hooks.call_context.draw", draw)
    rows_at(1, [Branch()], Selector(), NAMES)
    assert drawn == [(len(NAMES), TEXT), (len(NAMES), IMAGE)]


def test_another_count_of_tokens_starts_afresh():
    branches = [Branch()]
    call_at(1, branches, Selector(), NAMES).choose(NAMES[0], "img", IMAGE, "cpu")
    rows = call_at(2, branches, Selector(), NAMES).choose(NAMES[0], "img", IMAGE - 2, "cpu")
    assert int(rows.max()) < IMAGE - 2
