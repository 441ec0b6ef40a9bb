"""What the tests without ComfyUI sample: a small FLUX-layout transformer with random weights, and one
evaluation of it."""

import torch

from cache_core.config import CacheConfig
from cache_core.predictors.build import forecast
from cache_core.schedule.plan import explicit
from demo.flux import Flux, FluxConfig
from demo.sampler import sample

SIZE = 64  # pixels: a latent of 8 x 8, 16 image tokens
RED, BLUE, STAR = (
    "a large red heart center on a checkered white background",
    "a small blue circle center",
    "a large yellow star center",
)

torch.set_num_threads(1)  # tensors this small gain nothing from more, and sums keep one order


def random_flux(double=2, single=2, seed=0, hidden=128, kind=Flux):
    """A FLUX-layout model whose blocks matter: random weights of a size that moves the hidden state."""
    model = kind(FluxConfig(hidden=hidden, double=double, single=single)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        p.copy_(
            torch.randn(p.shape, generator=generator) * 0.08 + (1.0 if name.endswith("norm.scale") else 0.0)
        )
    return model


def run(model, settings=None, captions=(RED,), **kw):
    return sample(model, list(captions), size=SIZE, settings=settings, **{"steps": 6, **kw})


def ran(result):
    """The kinds a run's evaluations really had, as letters."""
    return "".join(r.actual for r in result.report.records)


def inputs(model, size=8, text=5, seed=0, batch=1):
    """Latent, text tokens and pooled text."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 16, size, size, generator=g),
        torch.randn(batch, text, model.config.token_dim, generator=g),
        torch.randn(batch, model.config.pooled_dim, generator=g),
    )


def plain(model, sigma, data):
    x, tokens, pooled = data
    return model(x, torch.full((len(x),), sigma, dtype=x.dtype), tokens, pooled)


def evaluate(cache, model, sigma, chunks=("cond",), data=None, begin=True):
    """One call of the model under the cache, opening an evaluation unless told not to; gives the kind it ran
    as and the velocity."""
    data = data or inputs(model)
    if begin:
        cache.begin_evaluation(sigma)
    with cache.call(model, list(chunks), tuple(n // 2 for n in data[0].shape[2:])) as kind:
        return kind, plain(model, sigma, data)


def assert_untouched(model):
    assert [name for name, m in model.named_modules() if "forward" in m.__dict__] == []


LEVELS = {
    "final": {"level": "final"},
    "output": {"level": "output"},
    "stack": {"level": "stack"},
    "singles": {"level": "stack", "first": "single"},
    "block": {"level": "block"},
    "module": {"level": "module"},
}
RULES = [{"name": "reuse"}, {"name": "linear", "gain": 0.9}, {"name": "newton"}]
FORECASTS = {
    "reuse": RULES[0],
    "linear": RULES[1],
    "newton": RULES[2],
    "least squares": {"name": "newton", "adapt": "least_squares"},
    "back off": {"name": "linear", "adapt": "back_off"},
    "channel": {"by": "channel", "pool": RULES, "clusters": 3},
    "band": {"by": "band", "low": RULES[0], "high": RULES[2], "cut": 0.5},
    "token": {"by": "token", "pool": RULES},
    "probe": {"name": "probe_gain", "low": None},
    "residual": {"name": "residual"},
}
PAIRS = [
    *(("final", f) for f in FORECASTS if f != "residual"),
    *((level, "linear") for level in LEVELS if level != "final"),
    ("output", "residual"),
    ("stack", "token"),
    ("singles", "probe"),
    ("singles", "band"),
    ("output", "band"),
    ("output", "channel"),
    ("block", "channel"),
    ("block", "band"),
    ("block", "least squares"),
    ("module", "newton"),
    ("module", "least squares"),
]
"""Levels and forecasts that are tested together."""


def cached(level, name, kinds, ratio=0.3):
    """The config with a forecast at a level."""
    return CacheConfig(schedule=explicit(kinds, ratio), predictor=forecast(FORECASTS[name]), **LEVELS[level])


def follow(cache, model, sigmas, data=None):
    """The outputs and kinds of evaluations at these noise levels."""
    kinds, outs = zip(*(evaluate(cache, model, s, data=data) for s in sigmas))
    assert_untouched(model)
    return "".join(kinds), outs
