"""Blocks that the registry describes by a spec: what other nodes do to them, blocks that write in place, what
a model cannot have."""

import pytest
import torch
from torch import nn

from cache_core.base.errors import CacheMismatch
from cache_core.base.names import LEVELS
from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.hooks import model_binding as models
from cache_core.models.block_spec import Family, SideModule, one, two
from cache_core.models.capabilities import abilities, fit
from cache_core.models.families import unknown_families
from cache_core.predictors.build import forecast
from cache_core.schedule.masks import Mask
from cache_core.schedule.plan import explicit
from cache_core.selectors.token_selection import Selector
from tests.tiny_flux import assert_untouched

WIDTH = 8
SIGMAS = [1.0, 0.9, 0.8, 0.8, 0.8, 0.0]


class Double(nn.Module):
    def __init__(self, writes):
        super().__init__()
        self.attn, self.img_mlp, self.txt_mlp = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.writes = writes

    def forward(self, img, txt, sigma):
        out = [
            0.3 * (self.attn(img + txt.mean(1, keepdim=True)) * sigma + self.img_mlp(img)),
            0.3 * self.txt_mlp(txt) * sigma,
        ]
        for x, more in zip((img, txt), out):
            if self.writes:
                x += more
        return (txt, img) if self.writes else (txt + out[1], img + out[0])


class Single(nn.Module):
    def __init__(self, writes):
        super().__init__()
        self.attn, self.mlp, self.writes = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), writes

    def forward(self, x, sigma):
        more = 0.3 * (self.attn(x) * sigma + self.mlp(x))
        if not self.writes:
            return x + more
        x += more
        return x


class Toy(nn.Module):
    """Two double and two single blocks, a refiner before them, and nodes that hold blocks back."""

    held, odd = (), ()

    def __init__(self, writes=False):
        super().__init__()
        torch.manual_seed(0)
        self.refiner = nn.Sequential(nn.Linear(WIDTH, WIDTH))
        self.doubles = nn.ModuleList(Double(writes) for _ in range(2))
        self.singles = nn.ModuleList(Single(writes) for _ in range(2))

    def forward(self, x, sigma, text):
        img, txt = x * 1.0, self.refiner(text)
        for i, block in enumerate(self.doubles):
            if i not in self.held:
                txt, img = block(img, txt=txt, sigma=sigma)
        x = torch.cat([txt, img], 1)
        for i, block in enumerate(self.singles, 2):
            if i not in self.held:
                x = block([x], sigma)[0] if i in self.odd else block(x, sigma)
        return x[:, text.shape[1] :].cumsum(-1)


def row(writes=False, **changes):
    lists = (
        (
            "doubles",
            "double",
            two(
                ("img", 0),
                ("txt", 1),
                "attn",
                gives=("txt", "img"),
                rows=("img_mlp", "txt_mlp"),
                writes=writes,
            ),
        ),
        ("singles", "single", one("x", "attn", rows="mlp", joined=("txt", "img"), writes=writes)),
    )
    return Family(
        **{
            "name": "Toy",
            "module": __name__,
            "model": "Toy",
            "lists": lists,
            "side_modules": (SideModule("refiner"),),
            **changes,
        }
    )


@pytest.fixture
def toy(monkeypatch):
    """`toy(**changes)`: a model, known to the table by a row."""

    def make(writes=False, **changes):
        monkeypatch.setattr(models, "find_family", lambda model: row(writes, **changes))
        return Toy(writes).eval().requires_grad_(False)

    return make


def data(seed=0, tokens=6, text=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, tokens, WIDTH, generator=g), torch.randn(1, text, WIDTH, generator=g)


def evaluate(cache, model, sigma, given):
    """One evaluation as a host makes it; gives the kind it ran as and the output."""
    cache.begin_evaluation(sigma)
    try:
        with cache.call(model, ["cond"]) as kind:
            return kind, model(given[0], sigma, given[1])
    except CacheMismatch:
        with cache.retry(model) as kind:
            return kind, model(given[0], sigma, given[1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("writes", [False, True])
def test_blocks_that_write_into_their_input_spoil_nothing(toy, level, writes):
    model, now, later = toy(writes), data(), data(1)
    kept = now[0].clone()
    cache = Controller(CacheConfig(schedule=explicit("FFAAC", 1.0), level=level), SIGMAS)
    kinds, outs = zip(*(evaluate(cache, model, s, d) for s, d in zip(SIGMAS, (later, now, now, now, now))))
    assert "".join(kinds) == "FFAAC" and torch.equal(now[0], kept)
    exact = model(now[0], 0.9, now[1])
    cache = Controller(CacheConfig(schedule=explicit("FAA"), level=level), [0.9, 0.9, 0.9, 0.0])
    assert all(torch.allclose(evaluate(cache, model, 0.9, now)[1], exact, atol=1e-5) for _ in range(3))
    assert torch.equal(outs[2], outs[3]) or level in ("stack", "block", "module")
    assert_untouched(model)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("held", range(4))
@pytest.mark.parametrize("steps", [(3,), (0, 1, 2), (1, 2), (0, 1, 2, 3, 4)], ids=str)
def test_a_block_that_another_node_holds_back_never_spoils_the_result(toy, level, held, steps):
    model, given = toy(), data()
    cache = Controller(CacheConfig(schedule=explicit("FFFAC", 0.5), level=level), SIGMAS)
    for i, sigma in enumerate(SIGMAS[:-1]):
        model.held = (held,) if i in steps else ()
        kind, out = evaluate(cache, model, sigma, given)
        assert_untouched(model)
        exact = model(given[0], sigma, given[1])
        assert torch.equal(out, exact) if kind == "F" else float((out - exact).norm() / exact.norm()) < 0.9
        needed = {"final": (3,), "stack": (3,) if 0 in steps else (0, 3)}.get(
            level, ()
        )  # a stack without its first block gives way
        assert kind == "F" or i != 3 or i not in steps or held not in needed


@pytest.mark.parametrize("level", [x for x in LEVELS if x != "output"])
@pytest.mark.parametrize("odd", [2, 3])
def test_blocks_called_in_another_way_than_the_table_says_run_in_full(toy, level, odd):
    """A newer version of a host may hand over a list where a tensor was."""
    model, given = toy(), data()
    model.odd = (odd,)
    real = type(model.singles[0]).forward
    for block in model.singles:
        block.forward = lambda x, sigma, block=block: (
            [real(block, x[0], sigma)] if isinstance(x, list) else real(block, x, sigma)
        )
    wrappers = [block.forward for block in model.singles]
    cache = Controller(CacheConfig(schedule=explicit("FFFAC", 0.5), level=level), SIGMAS)
    for sigma in SIGMAS[:-1]:
        kind, out = evaluate(cache, model, sigma, given)
        exact = model(given[0], sigma, given[1])
        assert torch.equal(out, exact) if kind == "F" else torch.allclose(out, exact, atol=1e-5)
    assert [block.forward for block in model.singles] == wrappers
    assert odd == 2 or "A" not in "".join(r.actual for r in cache.finish().records)


def test_what_only_the_blocks_read_is_not_computed_where_they_are_skipped(toy, unchecked):
    model, seen = toy(), []
    handle = model.refiner[0].register_forward_pre_hook(lambda *_: seen.append(1))
    for level, count in (("final", 1), ("stack", 2), ("block", 2)):
        seen.clear()
        cache = Controller(CacheConfig(schedule=explicit("FA"), level=level), [0.9, 0.9, 0.0])
        outs = [evaluate(cache, model, 0.9, data())[1] for _ in range(2)]
        assert torch.allclose(*outs, atol=1e-5) and len(seen) == count
    handle.remove()


def test_a_refused_family_is_sampled_plainly(toy):
    model = toy(lists=(), refusal="it is Monday")
    cache = Controller(CacheConfig(schedule=explicit("FAC")), [1.0, 0.8, 0.5, 0.0])
    assert [evaluate(cache, model, s, data())[0] for s in (1.0, 0.8, 0.5)] == ["F", "F", "F"]
    assert cache.finish().messages == ["Toy is sampled plainly: it is Monday."]


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ({}, ["final", "output", "stack", "block", "module", "tokens"]),
        ({"lists": (("singles", "single", one("x")),)}, ["final", "output", "stack", "block"]),
        (
            {"lists": (("singles", "single", one("x", "attn", "mlp")),)},
            ["final", "output", "stack", "block", "module"],
        ),
        (
            {"lists": (("doubles", "double", two(("img", 0), ("txt", 1))), ("singles", "single", one("x")))},
            ["final", "output", "block"],
        ),
        ({"lists": (), "output_only": "of this"}, ["output"]),
        ({"lists": (), "refusal": "no"}, []),
    ],
)
def test_the_levels_of_a_row(changes, can):
    assert abilities(row(**changes)) == can


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_a_model_lacks_gives_way_to_a_coarser_one_with_a_sentence(toy, level):
    lists = (
        ("doubles", "double", two(("img", 0), ("txt", 1), gives=("txt", "img"))),
        ("singles", "single", one("x")),
    )
    model, given = toy(lists=lists), data()
    cache = Controller(CacheConfig(schedule=explicit("FA"), level=level), [0.9, 0.9, 0.0])
    outs = [evaluate(cache, model, 0.9, given) for _ in range(2)]
    assert outs[1][0] == "A" and torch.allclose(outs[0][1], outs[1][1], atol=1e-5)
    told = {
        "stack": "The blocks of Toy change their tokens on the way; aggressive steps put back the final "
        "hidden state.",
        "module": "Toy has no level of modules in this pack; aggressive steps put back what each block adds.",
    }
    assert cache.finish().messages == ([told[level]] if level in told else [])


@pytest.mark.parametrize(
    "names",
    [("double.0.attn",), ("double.1.mlp", "single.1.attn"), ("double.0", "single.0.mlp"), ("single.1",)],
    ids=str,
)
@pytest.mark.parametrize("level", ["final", "module"])
@pytest.mark.parametrize("writes", [False, True])
def test_masks_compute_what_they_name_and_replay_the_rest(toy, writes, level, names):
    """The oracle overwrites by hooks what every other module gives."""
    model, data_at, kept = toy(writes), [data(i) for i in range(3)], {}
    cache = Controller(
        CacheConfig(mask=Mask.of(3, {name: [1] for name in names}), level=level), [1.0, 0.8, 0.5, 0.0]
    )
    outs = [evaluate(cache, model, s, d) for s, d in zip((1.0, 0.8, 0.5), data_at)]
    assert [kind for kind, _ in outs][:2] == ["F", "C"] and not cache.finish().messages
    paths = {"attn": ("attn",), "mlp": ("img_mlp", "txt_mlp", "mlp")}

    def overwrite(m, args, out, mark):
        kind, i, part = mark
        if (
            mark not in kept
            or f"{kind}.{i}" in names
            or any(f"{kind}.{i}.{p}" in names and part in paths[p] for p in paths)
        ):
            kept[mark] = out.clone()
        return kept[mark].clone()

    for kind, blocks in (("double", model.doubles), ("single", model.singles)):
        for i, block in enumerate(blocks):
            for part, m in block.named_children():
                m.register_forward_hook(lambda m, a, out, mark=(kind, i, part): overwrite(m, a, out, mark))
    exact = [model(d[0], s, d[1]) for s, d in zip((1.0, 0.8), data_at)]
    assert all(torch.allclose(out, e, atol=1e-5) for (_, out), e in zip(outs, exact))
    assert_untouched(model)


def test_a_mask_of_a_model_without_modules_says_only_that(toy):
    """And nothing of tokens, which a mask does not choose."""
    model = toy(lists=(("singles", "single", one("x")),))
    settings = CacheConfig(
        mask=Mask.of(3, {"single.0": [1]}), selector=Selector("value_norm_high"), attention="live"
    )
    cache = Controller(settings, [1.0, 0.8, 0.5, 0.0])
    assert evaluate(cache, model, 1.0, data())[0] == evaluate(cache, model, 0.8, data())[0] == "F"
    assert cache.finish().messages == [
        "Conservative steps ran in full: the modules of Toy cannot be chosen one by one."
    ]


def test_a_forecast_that_a_coarser_level_cannot_have_is_told(toy):
    model = toy(lists=(), output_only="of this")
    rule = forecast({"by": "token", "pool": [{"name": "linear"}, {"name": "reuse"}]})
    cache = Controller(CacheConfig(schedule=explicit("FFA"), predictor=rule), [1.0, 0.8, 0.5, 0.0])
    assert [evaluate(cache, model, s, data())[0] for s in (1.0, 0.8, 0.5)] == ["F", "F", "A"]
    assert cache.finish().messages == [
        "Toy can be cached at its output only, because of this; aggressive steps put back the model's "
        "output.",
        "The forecast 2 rules by token needs the first blocks of a step, which do not run at this level; "
        "data prediction, linear is used instead.",
    ]


@pytest.mark.parametrize(
    ("names", "told"),
    [((), None), (("FLUX", "Wan"), None), (("Flux", "Wan"), "Flux."), ("edcba", "a, b, c and 2 more.")],
)
def test_families_that_are_in_no_row_are_told(names, told):
    sentence = unknown_families(names)
    assert sentence is None if told is None else sentence.endswith(f"does not have: {told}")


def test_blocks_that_are_not_where_the_table_says():
    settings, said = fit(CacheConfig(level="module"), row(), [], "Toy", False)
    assert settings.level == "output" and said == [
        "The blocks of Toy are not where this pack knows them to be; aggressive steps put back the "
        "model's output."
    ]
