"""ComfyUI's Flux KV Cache node beside the cache: it drops the tokens of reference pictures after the first
call. The self-check of the final hidden state meets that and goes on at the output."""

from __future__ import annotations

import comfy_extras.nodes_flux as flux_nodes
import pytest
import torch

from tests.comfy import tiny_families as tiny

MODULES = "Aggressive steps at the modules ran in full: the modulation differs between tokens."
SAID = {"final": "aggressive steps put back the model's output", "module": MODULES}
"""What the report says at each level."""
HAS = hasattr(flux_nodes, "FluxKVCache") and "flux 2" in tiny.present()


def options(patcher):
    """The transformer_options that the node leaves on a model."""
    patched = flux_nodes.FluxKVCache.execute(patcher).args[0]
    return {**patched.model_options["transformer_options"]}


@pytest.mark.parametrize("level", ["final", "output", "block", "module"] if HAS else [])
def test_steps_are_right_and_the_report_says_where_they_are_coarser(fill, runs, level):
    patcher = tiny.build("flux 2", fill)
    base = patcher.model
    reference = torch.randn(1, 128, 4, 4, generator=torch.Generator().manual_seed(3))
    data = {
        **tiny.arguments("flux 2"),
        "ref_latents": [reference],
        "ref_latents_method": "index_timestep_zero",
    }
    plain = options(patcher)
    exact = [tiny.call(base, 0.8, data, dict(plain)) for _ in range(3)]
    assert torch.equal(exact[1], exact[2])
    cache, evaluate = runs(base, "FFFAFA", level=level, sigmas=[1.0, *[0.8] * 5, 0.0])
    kept = options(patcher)
    outs = [evaluate(0.8, data, more=kept) for _ in range(6)]
    report = cache.finish()
    assert all((out - exact[1]).norm() < 1e-5 * exact[1].norm() for out in outs[1:])
    kinds = "".join(r.actual for r in report.records)
    assert ("A" in kinds) == (level != "module")
    assert [SAID[level] in m for m in report.messages] == ([True] if level in SAID else [])
