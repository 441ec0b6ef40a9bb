"""The self-check of the first full call: blocks that are not what the table says, by whatever cause, never
spoil a picture."""

import pytest
import torch
from torch import nn

from cache_core.base.names import LEVELS, NAMES
from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.hooks import model_binding as models
from cache_core.hooks.wiring import Wiring
from cache_core.models.block_spec import Family, one
from cache_core.schedule.plan import explicit
from demo.flux import DoubleStreamBlock, SingleStreamBlock
from tests.tiny_flux import LEVELS as FLUX_LEVELS
from tests.tiny_flux import assert_untouched, inputs, plain, random_flux
from tests.tiny_flux import evaluate as evaluate_flux

WIDTH = 8
SIGMAS = [1.0, 0.9, 0.9, 0.8, 0.8, 0.5, 0.0]


class Linear(nn.Linear):
    runs = 0

    def forward(self, x):
        Linear.runs += 1
        return super().forward(x)


class Block(nn.Module):
    """In an order of the day: as the table says, or not."""

    def __init__(self):
        super().__init__()
        self.attn, self.mlp = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, x, sigma):
        x = x + self.attn(x) * sigma
        return x + self.mlp(x)


class WritesInput(Block):
    def forward(self, x, sigma):
        x += self.attn(x) * sigma
        return x.add_(self.mlp(x))


class WritesOutputs(Block):
    """What a sub-module gives is gated in place, so that what was kept of it is gated too."""

    def forward(self, x, sigma):
        return x + self.attn(x).mul_(0.5 + sigma) + self.mlp(x).mul_(0.3)


class MixesTokens(Block):
    """Its MLP looks at its neighbours."""

    def __init__(self):
        super().__init__()
        self.mlp = Mixing()


class Mixing(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, WIDTH)

    def forward(self, x):
        return super().forward(x).cumsum(1)


class Returns(Block):
    """A pair, of which the model takes the first."""

    def forward(self, x, sigma):
        out = super().forward(x, sigma)
        return out, None


class Toy(nn.Module):
    calls, memory = 0, False

    def __init__(self, block=Block, tail=None):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head = nn.ModuleList(block() for _ in range(3)), nn.Linear(WIDTH, WIDTH)
        self.tail = nn.ModuleList([] if tail is None else [tail()])

    def forward(self, x, sigma):
        self.calls += 1
        h, first = x * 1.0, 0.0
        for i, block in enumerate(self.blocks):
            h = block(h, sigma)
            h = h[0] if isinstance(h, tuple) else h
            first = h.clone() if i == 0 and self.memory else first
        for block in self.tail:
            h = block(h, sigma)
        return self.head(h + first) * sigma


@pytest.fixture
def toy(monkeypatch):
    """`toy(block)`: a model of such blocks, which the table describes as plain ones."""
    row = Family("Toy", __name__, "Toy", (("blocks", "block", one("x", "attn", rows="mlp")),))
    monkeypatch.setattr(models, "find_family", lambda model: row)
    return lambda *args: Toy(*args).eval().requires_grad_(False)


def data(seed=0):
    return torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(seed))


def sampled(model, settings, sigmas=SIGMAS, given=None):
    """A run: its report, and whether every step gave what a plain one gives."""
    cache, given, right = (
        Controller(settings, sigmas, host="Host 1.2"),
        data() if given is None else given,
        [],
    )
    for sigma in sigmas[:-1]:
        exact = model(given, sigma)
        cache.begin_evaluation(sigma)
        with cache.call(model, ["cond"]) as kind:
            out = model(given, sigma)
        right.append(torch.equal(out, exact) if kind == "F" else torch.allclose(out, exact, atol=1e-5))
        assert_untouched(model)
    return cache.finish(), right


def told(*instead):
    return (
        "The blocks of Toy do not behave in Host 1.2 as registered in this pack, or another node has "
        "changed them; "
        f"{' and '.join(instead)}."
    )


PUT = {level: f"aggressive steps put back {name}" for level, name in NAMES.items()}
ROWS = "conservative steps run in full"
STILL = [0.9] * 6 + [
    0.0
]  # one noise level and one input: whatever is put back, the result is that of a full step


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kinds", ["FAFAFA", "FCFCFC", "FACFAC"])
def test_blocks_as_the_table_says_pass_and_nothing_is_said(toy, level, kinds):
    report, right = sampled(toy(), CacheConfig(schedule=explicit(kinds, 0.5), level=level), STILL)
    assert "".join(r.actual for r in report.records) == kinds and all(right) and not report.messages


@pytest.mark.parametrize(
    ("block", "level", "kinds", "ran", "sentences"),
    [
        (WritesInput, "block", "FAFAFA", "FFFAFA", [PUT["final"]]),
        (WritesOutputs, "module", "FAFAFA", "FFFAFA", [PUT["block"]]),
        (WritesOutputs, "final", "FCFAFC", "FFFAFF", [ROWS]),
        (WritesOutputs, "module", "FACFAC", "FFFFAF", [f"{PUT['block']} and {ROWS}"]),
        (MixesTokens, "final", "FCFCFA", "FFFFFA", [ROWS]),
        (Block, "module", "FACFAC", "FACFAC", []),
        (MixesTokens, "module", "FAFAFA", "FAFAFA", []),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_blocks_of_another_make_give_way_to_a_coarser_level(toy, block, level, kinds, ran, sentences):
    report, right = sampled(toy(block), CacheConfig(schedule=explicit(kinds, 0.5), level=level), STILL)
    assert ("".join(r.actual for r in report.records), report.messages) == (
        ran,
        [told(s) for s in sentences],
    ) and all(right)


@pytest.mark.parametrize("level", ["final", "stack"])
def test_what_reads_blocks_behind_the_last_one_is_found(toy, level):
    """As in a model whose last layers take what the first block gave too."""
    model = toy()
    model.memory = True
    report, right = sampled(model, CacheConfig(schedule=explicit("FAFAFA"), level=level), STILL)
    sentences = [told(PUT["final"]), told(PUT["output"])] if level == "stack" else [told(PUT["output"])]
    assert report.messages == sentences and all(right)
    assert "".join(r.actual for r in report.records) == "FFFAFA"


def test_blocks_that_the_table_does_not_name_behind_the_last_one_still_run(toy):
    report, right = sampled(toy(Block, Block), CacheConfig(schedule=explicit("FAFAFA")), STILL)
    assert not report.messages and all(right)


@pytest.mark.parametrize("level", [x for x in LEVELS if x != "output"])
def test_a_block_that_returns_something_else_is_never_put_back_as_another(toy, level):
    assert all(sampled(toy(Returns), CacheConfig(schedule=explicit("FAFAFA"), level=level), STILL)[1])


@pytest.mark.parametrize("level", ["block", "module"])
def test_a_block_that_another_pack_has_rewritten_is_found_among_the_others(toy, level):
    model = toy()
    rewritten = WritesInput.forward if level == "block" else WritesOutputs.forward
    model.blocks[1].forward = rewritten.__get__(model.blocks[1])
    cache = Controller(CacheConfig(schedule=explicit("FAFA"), level=level), [0.9] * 4 + [0.0])
    for _ in range(4):
        exact = model(data(), 0.9)
        cache.begin_evaluation(0.9)
        with cache.call(model, ["cond"]):
            assert torch.allclose(model(data(), 0.9), exact, atol=1e-5)
    assert len(cache.finish().messages) == 1


@pytest.mark.parametrize(
    ("level", "kinds", "calls", "linears"),
    [
        ("final", "FFFA", 1, 0),
        ("stack", "FFFA", 1, 0),
        ("block", "FFFA", 0, 0),
        ("module", "FFFA", 0, 0),
        ("final", "FFCA", 1, 1),
        ("output", "FFFA", 0, 0),
        ("final", "FFFF", 0, 0),
    ],
)
def test_the_check_runs_once_and_costs_a_block_or_less(toy, level, kinds, calls, linears):
    """Calls of the model and of the linear layers of its blocks, beyond those of the run."""
    counted = []
    for check in (True, False):
        model = toy()
        cache = Controller(
            CacheConfig(schedule=explicit(kinds, 0.5), level=level), SIGMAS[: len(kinds)] + [0.0]
        )
        if not check:
            cache._active = False
        Linear.runs = 0
        for i in range(3):
            cache.begin_evaluation(SIGMAS[i])
            with cache.call(model, ["cond"]):
                model(data(i), SIGMAS[i])
            counted.append((model.calls, Linear.runs))
    (with_calls, with_layers), (plain_calls, plain_layers) = counted[1], counted[4]  # after two full steps
    assert (with_calls - plain_calls, with_layers - plain_layers) == (calls, linears)


def test_code_that_fails_on_other_blocks_leaves_the_step_as_it_is(toy, monkeypatch):
    """As where a name has changed on which an adapter relies."""
    model = toy()
    monkeypatch.setattr(Wiring, "_keep", lambda *_: None.missing)
    report, right = sampled(model, CacheConfig(schedule=explicit("FAFA")), [0.9] * 4 + [0.0])
    assert report.messages == [told(PUT["output"])] and all(right)
    assert "".join(r.actual for r in report.records) == "FFFA"


@pytest.mark.parametrize("error", [TypeError, torch.OutOfMemoryError, KeyboardInterrupt, ArithmeticError])
def test_errors_of_the_model_itself_are_its_own(toy, error):
    model, runs = toy(), []

    def failing(*_):
        runs.append(1)
        raise error("of the model")

    handle = model.head.register_forward_pre_hook(failing)
    cache = Controller(CacheConfig(schedule=explicit("FAFA")), SIGMAS[:5])
    cache.begin_evaluation(1.0)
    with pytest.raises(error, match="of the model"), cache.call(model, ["cond"]):
        model(data(), 1.0)
    handle.remove()
    assert_untouched(model)
    assert len(runs) == (2 if error is TypeError else 1)


def test_random_numbers_are_drawn_as_without_the_check(toy):
    class Noisy(Toy):
        def forward(self, x, sigma):
            return super().forward(x + 0.1 * torch.randn_like(x), sigma) + torch.rand(1)

    model, outs = Noisy().eval().requires_grad_(False), []
    for kinds in ("FFFA", "FFFF"):
        torch.manual_seed(3)
        cache = Controller(CacheConfig(schedule=explicit(kinds)), SIGMAS[:5])
        for sigma in SIGMAS[:3]:
            cache.begin_evaluation(sigma)
            with cache.call(model, ["cond"]):
                outs.append(model(data(), sigma))
        assert not cache.finish().messages
    assert all(torch.equal(a, b) for a, b in zip(outs[:3], outs[3:]))


def test_results_that_are_not_finite_are_no_fault_of_the_table(toy):
    report, _ = sampled(
        toy(), CacheConfig(schedule=explicit("FAC", 0.5)), [0.9] * 3 + [0.0], data() * float("inf")
    )
    assert not report.messages


@pytest.mark.parametrize(
    ("block", "level", "kinds", "ran"),
    [
        (MixesTokens, "final", "FCFC", "FCFF"),
        (WritesOutputs, "module", "FAFA", "FAFF"),
        (Block, "final", "FAFA", "FAFF"),
    ],
)
def test_blocks_are_looked_at_again_after_results_that_are_not_finite(toy, block, level, kinds, ran):
    model = toy(block)
    cache, levels = (
        Controller(
            CacheConfig(schedule=explicit(kinds, 0.5), level=level), [0.9] * 4 + [0.0], host="Host 1.2"
        ),
        [],
    )
    model.memory = block is Block
    for step in range(4):
        given = data() * (float("nan") if step < 2 else 1.0)
        exact = model(given, 0.9)
        cache.begin_evaluation(0.9)
        with cache.call(model, ["cond"]):
            out = model(given, 0.9)
        levels.append(torch.allclose(out, exact, atol=1e-5, equal_nan=True))
    report = cache.finish()
    assert "".join(r.actual for r in report.records) == ran and all(levels)
    assert report.messages == [
        told(PUT["output"] if block is Block else PUT["block"] if level == "module" else ROWS)
    ]


# --- FLUX's blocks ----------------------------------------------------------------------------------


class TwiceGated(DoubleStreamBlock):
    """A host's newer block, which gates its streams in another way than the replay does."""

    def forward(self, img, txt, *args, **kwargs):
        out = super().forward(img, txt, *args, **kwargs)
        return img + 2 * (out[0] - img), out[1]


class Renamed(SingleStreamBlock):
    """Whose second layer has another name."""

    def forward(self, *args, **kwargs):
        self.__dict__["linear2"] = self.out
        try:
            return super().forward(*args, **kwargs)
        finally:
            del self.__dict__["linear2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("level", FLUX_LEVELS)
@pytest.mark.parametrize("attention", ["frozen", "live"])
def test_flux_blocks_pass_in_every_precision(level, attention, dtype):
    model = random_flux().to(dtype)
    given = tuple(t.to(dtype) for t in inputs(model))
    cache = Controller(
        CacheConfig(schedule=explicit("FACF", 0.3), attention=attention, **FLUX_LEVELS[level]),
        [0.9] * 4 + [0.0],
    )
    kinds = [evaluate_flux(cache, model, 0.9, data=given)[0] for _ in range(4)]
    assert kinds == list("FACF") and not cache.finish().messages


@pytest.mark.parametrize("level", FLUX_LEVELS)
@pytest.mark.parametrize("kind", [TwiceGated, Renamed])
def test_flux_blocks_of_another_make(level, kind):
    model = random_flux()
    for block in [*model.double_blocks, *model.single_blocks]:
        if isinstance(block, kind.__base__):
            block.__class__ = kind
            if kind is Renamed:
                block.out = block.linear2
                del block.linear2
    given = inputs(model)
    cache = Controller(
        CacheConfig(schedule=explicit("FACFACFA", 0.3), **FLUX_LEVELS[level]), [0.9] * 8 + [0.0]
    )
    exact = plain(model, 0.9, given)
    for _ in range(8):
        ran, out = evaluate_flux(cache, model, 0.9, data=given)
        assert torch.equal(out, exact) if ran == "F" else torch.allclose(out, exact, atol=1e-5)
    report = cache.finish()
    assert "A" in "".join(r.actual for r in report.records) and 1 <= len(report.messages) <= 3
    assert all("FLUX" in m for m in report.messages)
