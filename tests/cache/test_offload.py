"""Snapshots in main memory between two uses: the same results, with few on the device at once, sent for
before they are needed."""

import re

import pytest
import torch

from cache_core.base.coordinates import Node
from cache_core.cache.feature_cache import Site
from cache_core.cache.offload import OffloadStore
from cache_core.controller import Controller
from cache_core.memory.budget import Budget
from cache_core.predictors.extrapolation import predictor
from demo.sampler import schedule_sigmas
from tests.tiny_flux import LEVELS, PAIRS, assert_untouched, cached, follow, ran, random_flux, run

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def model():
    return random_flux(double=2, single=3)


def away(peak, share):
    return Budget(limit=share * peak, elsewhere=float("inf"), branches=2)


def shelved(settings, steps):
    """A controller that keeps its snapshots away from the start."""
    cache = Controller(settings, schedule_sigmas(steps), budget=Budget(elsewhere=float("inf")))
    cache._store.offloaded = OffloadStore()
    return cache


@pytest.mark.parametrize(
    ("level", "name"), [p for p in PAIRS if p[0] in ("block", "module")] + [("final", "newton")], ids=str
)
@pytest.mark.parametrize("split", [False, True])
def test_results_are_the_same(model, monkeypatch, level, name, split):
    settings, near = cached(level, name, "FFFAAFAF"), []
    free = run(model, settings, steps=8, split=split)
    send_for = OffloadStore._send_for

    def watched(self, site):
        found = send_for(self, site)
        near.append(self.near_bytes)
        return found

    monkeypatch.setattr(OffloadStore, "_send_for", watched)
    share = 0.7 if level != "final" else 1.0
    monkeypatch.setattr("cache_core.memory.budget.WINDOW", 2 if level != "final" else 0)
    result = run(model, settings, steps=8, split=split, budget=away(free.report.peak_bytes - 1, share))
    assert torch.equal(result.latents, free.latents) and ran(result) == ran(free)
    assert (
        result.report.messages
        == [m for m in result.report.messages if "kept in main memory between two uses" in m]
        != []
    )
    assert near and (level == "final" or max(near) <= share * free.report.peak_bytes)
    assert_untouched(model)


def test_snapshots_are_sent_for_before_the_site_that_uses_them(model, monkeypatch):
    asked, used, send_for, near = [], [], OffloadStore._send_for, OffloadStore.near

    def sending(self, site):
        if site not in self._near:
            asked.append(site.name)
        return send_for(self, site)

    def using(self, site, source):
        used.append((site.name, site in self._near))
        return near(self, site, source)

    monkeypatch.setattr(OffloadStore, "_send_for", sending)
    monkeypatch.setattr(OffloadStore, "near", using)
    cache = shelved(cached("block", "linear", "FFAAFA"), 6)
    follow(cache, model, schedule_sigmas(6)[:2])
    used.clear()
    follow(cache, model, schedule_sigmas(6)[2:4])
    late = [name for name, there in used if not there]
    assert len(late) <= 1 and len(used) >= 2 * 7  # at most the first one of all
    cache.finish()


@pytest.mark.parametrize("device", DEVICES)
def test_a_site_gives_back_what_it_was_given(device):
    offloaded = OffloadStore()
    one, two = Site(name="one", offloaded=offloaded), Site(name="two", offloaded=offloaded)
    rule, given = predictor("linear"), {}
    for step in range(3):
        for site in (one, two):
            given[site.name, step] = torch.randn(2, 5, 8, device=device)
            site.record(given[site.name, step], Node(step, 1 - step / 10), rule)
    offloaded.start()
    for site in (one, two, one):
        assert [s.device.type for s in site.snapshots] == [device] * 2
        assert all(torch.equal(s, given[site.name, step]) for s, step in zip(site.snapshots, (2, 1)))
    assert one.bytes == 2 * 2 * 5 * 8 * 4 and offloaded.near_bytes <= one.bytes + two.bytes
    assert all(s.device.type == "cpu" for s in one.kept)
    offloaded.clear()
    assert offloaded.near_bytes == 0


def test_nothing_is_moved_where_main_memory_is_short(model):
    settings = cached("block", "linear", "FFFAAF")
    free = run(model, settings)
    result = run(
        model,
        settings,
        budget=Budget(limit=0.7 * free.report.peak_bytes, elsewhere=0.5 * free.report.peak_bytes, branches=2),
    )
    assert "the final hidden state" in result.report.messages[0]


@pytest.mark.parametrize("level", LEVELS)
def test_a_run_leaves_nothing_on_the_shelf(model, level):
    cache = shelved(cached(level, "linear", "FFAFA"), 5)
    offloaded = cache._store.offloaded
    follow(cache, model, schedule_sigmas(5)[:-1])
    cache.finish()
    assert offloaded.near_bytes == 0 and not offloaded._near and not offloaded._after


def test_as_many_sites_stay_on_the_device_as_there_is_room_for():
    """Two of four sites, which are then neither copied nor sent for."""
    size = 2 * 5 * 8 * 4
    offloaded, rule = OffloadStore(room=2 * 2 * size + 1), predictor("linear")
    sites = [Site(name=i, offloaded=offloaded) for i in range(4)]
    given = {}
    for step in range(3):
        for site in sites:
            given[site.name, step] = torch.randn(2, 5, 8)
            site.record(given[site.name, step], Node(step, 1 - step / 10), rule)
    offloaded.start()
    for site in sites:
        assert all(torch.equal(s, given[site.name, step]) for s, step in zip(site.snapshots, (2, 1)))
    for site in sites[:2]:
        assert all(s is given[site.name, step] for s, step in zip(site.snapshots, (2, 1)))
    assert not any(s is given[3, step] for s in sites[3].kept for step in (2, 1))
    assert set(offloaded._near) <= set(sites[2:])


def test_what_is_moved_is_said_with_the_numbers(model):
    settings = cached("module", "linear", "FFFAAF")
    peak = run(model, settings).report.peak_bytes
    (said,) = run(model, settings, budget=away(peak, 0.8)).report.messages
    moved, whole = re.search(r"about (\S+ \S+) of the (\S+ \S+) of snapshots", said).groups()
    assert moved != whole


def test_pinned_memory_is_counted_as_torch_takes_it(model):
    """The next power of two for every snapshot."""
    settings = cached("block", "linear", "FFFAAF")
    free = run(model, settings)
    peak = free.report.peak_bytes
    fits = run(model, settings, budget=Budget(limit=0.6 * peak, elsewhere=2 * peak, branches=2))
    assert "main memory" in fits.report.messages[0] and torch.equal(fits.latents, free.latents)
    short = run(model, settings, budget=Budget(limit=0.6 * peak, elsewhere=0.3 * peak, branches=2))
    assert "main memory" not in short.report.messages[0]
