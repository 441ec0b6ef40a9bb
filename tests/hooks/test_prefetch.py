"""Weights of skipped blocks are not fetched: a model's loop that asks for the next block's weights, as
ComfyUI's does with DynamicVRAM, is told not to on aggressive steps."""

import pytest
import torch

from cache_core.controller import Controller
from cache_core.hooks.shims import PREFETCH
from demo.sampler import schedule_sigmas
from tests.tiny_flux import LEVELS, assert_untouched, cached, inputs, random_flux

KINDS = "FFACFA"


class Fetching:
    """A model's forward that counts the bytes its loop asks for, and those that blocks ask for themselves."""

    def __init__(self, model):
        self.model, self.forward, self.requested = model, model.forward, 0
        self.blocks = [*model.double_blocks, *model.single_blocks]
        model.forward = self

    @staticmethod
    def bytes_of(block):
        return sum(p.numel() * p.element_size() for p in block.parameters())

    def __call__(self, *args, transformer_options=None, **kwargs):
        if (transformer_options or {}).get(PREFETCH):
            self.requested += sum(map(self.bytes_of, self.blocks))
        return self.forward(*args, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize("level", LEVELS)
def test_aggressive_steps_request_no_weights_ahead(level):
    model = random_flux()
    loop, options = Fetching(model), {PREFETCH: True, "other": 1}
    whole = sum(map(loop.bytes_of, loop.blocks))
    x, tokens, pooled = inputs(model)
    cache, sigmas = Controller(cached(level, "linear", KINDS), schedule_sigmas(len(KINDS))), []
    for sigma in schedule_sigmas(len(KINDS))[:-1]:
        loop.requested = 0
        cache.begin_evaluation(sigma)
        with cache.call(model, ["cond"], (4, 4)) as kind:
            model(x, torch.full((1,), sigma), tokens, pooled, transformer_options=options)
        sigmas.append((kind, loop.requested))
    cache.finish()
    assert "".join(k for k, _ in sigmas) == KINDS
    assert all(n % whole == 0 and n >= whole for k, n in sigmas if k != "A")
    assert all(n == 0 for k, n in sigmas if k == "A")
    assert options == {PREFETCH: True, "other": 1}
    model.__dict__.pop("forward")
    assert_untouched(model)
