"""Recording for a profile: the same matrices in one process and on a Ray cluster, whatever the batches."""

import sys
from importlib.util import find_spec

import pytest
import torch

from bench import profile as bench
from demo.weights import load_transformer

CAPTIONS = bench.calibration(3)


@pytest.fixture(scope="module")
def one():
    return bench.record(load_transformer(), bench.jobs(CAPTIONS, 4, 1.0, 3, size=64))


def test_batches_do_not_matter(one):
    two = bench.record(load_transformer(), bench.jobs(CAPTIONS, 4, 1.0, 1, size=64))
    assert (
        one.grams.shape == (3, 4, 4)
        and torch.allclose(one.grams, two.grams, rtol=1e-4)
        and one.identity == two.identity
    )


@pytest.mark.long
@pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed; requirements-dev.txt names it where it has builds"
)
def test_a_ray_cluster_of_two_workers_gives_the_same(one):
    if " " in find_spec("ray").origin:  # where it can only say so
        with pytest.raises(RuntimeError, match="a folder with a blank in its path"):
            bench.record(None, bench.jobs(CAPTIONS, 4, 1.0, 2, size=64), "local")
        return
    spread = bench.record(load_transformer(), bench.jobs(CAPTIONS, 4, 1.0, 2, size=64), "local")
    assert torch.allclose(spread.grams, one.grams, rtol=1e-4) and spread.identity == one.identity


def test_other_parts_are_recorded_by_all_jobs_with_the_clusters_of_the_first():
    whole = bench.record(load_transformer(), bench.jobs(CAPTIONS[:2], 5, 1.0, 1, size=64), clusters=3)
    assert (
        whole.path.shape == (2, 11, 11)
        and whole.tokens.shape == (2, 5, 4)
        and whole.clusters.grams.shape == (2, 3, 5, 5)
    )
    assert (
        torch.allclose(whole.clusters.grams.sum(1), whole.grams, rtol=1e-6)
        and whole.identity["sampler"] == "sample_euler"
    )


def test_without_ray_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeError, match="Ray is not installed"):
        bench.record(None, bench.jobs(CAPTIONS, 4, 1.0, 2, size=64), "local")


def test_calibration_captions_are_not_those_that_judge():
    assert not set(bench.calibration(12)) & set(bench.prompts(16))
