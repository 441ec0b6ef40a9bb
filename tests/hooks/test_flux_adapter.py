"""FLUX's blocks against an oracle: DuCa's in-place caches, written down without gathering, corrections or
shims.

The oracle computes every token of a conservative step and keeps the chosen rows; the pack computes the chosen
rows alone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as nnf

from cache_core.base.coordinates import Node
from cache_core.cache.feature_cache import Batch, Branch
from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.hooks.call_context import Call
from cache_core.hooks.flux_adapter import FluxDouble, FluxSingle, adapter_of
from cache_core.models.families import blocks_of, find_family
from cache_core.schedule.plan import explicit
from cache_core.selectors.token_selection import Selector, count_rows, value_norm
from tests.tiny_flux import evaluate, inputs, random_flux

TEXT, GRID = 5, 4
IMAGE = GRID * GRID
BATCH = 2
pytestmark = pytest.mark.usefixtures("unchecked")
SIGMAS = [1.0, 0.85, 0.7, 0.6, 0.45, 0.3, 0.1, 0.0]
PLAN = "FCCACFC"


@pytest.fixture(scope="module")
def model():
    """One double and one single block, two heads."""
    return random_flux(double=1, single=1, hidden=256)


@pytest.fixture(scope="module")
def data(model):
    """What each step gets: its own latent, the same text."""
    return [
        (inputs(model, 2 * GRID, batch=BATCH, seed=i)[0], *inputs(model, text=TEXT, batch=BATCH)[1:])
        for i in range(len(PLAN))
    ]


def modulated(x, norm, m):
    return norm(x) * (1 + m.scale) + m.shift


def rotated(x, pe):
    """Each pair of x turned by its 2 x 2 matrix."""
    return torch.einsum("...ij,...j->...i", pe, x.unflatten(-1, (-1, 2))).flatten(-2)


def joined(text, image):
    """Masks of the joint sequence from those of its parts, which may be shared by the batch; None stays
    None."""
    return None if text is None else torch.cat((text.expand(BATCH, -1), image.expand(BATCH, -1)), 1)


def heads_of(qkv, heads, norm):
    """Query and key, normed, and value, each [B, heads, N, D]."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return (*norm(q, k, v), v)


class InPlaceCache:
    """ToCa's and DuCa's cache of one double and one single block: tensors that fresh rows are written
    into."""

    def __init__(self, model, live):
        self.double, self.single, self.live, self.kept = (
            model.double_blocks[0],
            model.single_blocks[0],
            live,
            {},
        )

    def put(self, name, value, mask, dim=1):
        """Keeps `value`, all of it (mask None) or the rows of the mask [B or 1, N], and returns what is
        kept."""
        if mask is None:
            self.kept[name] = value.clone()
        else:
            shape = [1] * value.ndim
            shape[0], shape[dim] = mask.shape
            self.kept[name] = torch.where(mask.view(shape), value, self.kept[name])
        return self.kept[name]

    def attention(self, name, parts, pe, mask):
        """Attention of the joint sequence; `parts` are (q, k, v) of text and image, or of both at once."""
        q, k, v = (torch.cat(p, 2) for p in zip(*parts))
        k, v = self.put(name + " k", rotated(k, pe), mask, dim=2), self.put(name + " v", v, mask, dim=2)
        return nnf.scaled_dot_product_attention(rotated(q, pe), k, v).transpose(1, 2).flatten(2)

    def full(self, img, txt, vec, pe):
        return self.run(img, txt, vec, pe, None, True)

    def conservative(self, img, txt, vec, pe, masks):
        return self.run(img, txt, vec, pe, masks, self.live)

    def run(self, img, txt, vec, pe, masks, attend):
        x = torch.cat(self.double_block({"txt": txt, "img": img}, vec, pe, masks, attend), 1)
        self.kept["final"] = self.single_block(x, vec, pe, masks, attend)
        return self.kept["final"]

    def double_block(self, streams, vec, pe, masks, attend):
        b, fresh, out = self.double, {}, []
        mods = {s: getattr(b, s + "_mod")(vec) for s in streams}
        own = {s: None if masks is None else masks["double", s] for s in streams}
        if attend:
            attns = {s: getattr(b, s + "_attn") for s in streams}
            parts = [
                heads_of(
                    attns[s].qkv(modulated(x, getattr(b, s + "_norm1"), mods[s][0])),
                    b.num_heads,
                    attns[s].norm,
                )
                for s, x in streams.items()
            ]
            joint = self.attention("double", parts, pe, joined(*own.values()))
            fresh = {"txt": b.txt_attn.proj(joint[:, :TEXT]), "img": b.img_attn.proj(joint[:, TEXT:])}
        for s, x in streams.items():
            first, second = mods[s]
            x = (
                x
                + (self.put(s + "_attn", fresh[s], own[s]) if attend else self.kept[s + "_attn"]) * first.gate
            )
            mlp = getattr(b, s + "_mlp")(modulated(x, getattr(b, s + "_norm2"), second))
            out.append(x + self.put(s + "_mlp", mlp, own[s]) * second.gate)
        return out

    def single_block(self, x, vec, pe, masks, attend):
        b = self.single
        mod = b.modulation(vec)[0]
        mask = None if masks is None else joined(masks["single", "txt"], masks["single", "img"])
        qkv, mlp = b.linear1(modulated(x, b.pre_norm, mod)).split([3 * b.hidden_size, b.mlp_hidden_dim], -1)
        if attend:
            self.kept["attn"] = self.attention("single", [heads_of(qkv, b.num_heads, b.norm)], pe, mask)
        return (
            x + self.put("out", b.linear2(torch.cat((self.kept["attn"], b.mlp_act(mlp)), 2)), mask) * mod.gate
        )


class Tape:
    """Runs a plan through the controller and writes down what went into the blocks, which rows were chosen
    and what came out."""

    def __init__(self, model, data, settings, monkeypatch, per_sample=False):
        self.inputs, self.finals, self.masks, self.kinds, self.rows = [], [], [], [], []
        chosen = []
        # Value norms choose block by block and sample by sample.
        settings = replace(settings, selector=Selector("value_norm_high"))

        def choose(selector, k, *, n, device=None, **_):
            rows = torch.stack(
                [torch.randperm(n, generator=g)[:k].sort().values for _ in range(BATCH if per_sample else 1)]
            )
            chosen.append((rows, n))
            return rows

        g = torch.Generator().manual_seed(2)
        monkeypatch.setattr(Selector, "choose", choose)

        def enter(module, args, kwargs):
            self.inputs.append(tuple(kwargs[k].clone() for k in ("img", "txt", "vec", "pe")))

        def leave(module, args):
            self.finals.append(args[0].clone())

        handles = [
            model.double_blocks[0].register_forward_pre_hook(enter, with_kwargs=True),
            model.final_layer.register_forward_pre_hook(leave),
        ]
        cache = Controller(settings, SIGMAS)
        try:
            for own, sigma in zip(data, SIGMAS):
                chosen.clear()
                self.kinds.append(evaluate(cache, model, sigma, data=own)[0])
                self.masks.append(self.as_masks(chosen, settings))
        finally:
            for handle in handles:
                handle.remove()
        self.report = cache.finish()

    @staticmethod
    def as_masks(chosen, settings):
        """A mask per block and stream; a stream's choices come in the order of the blocks."""
        masks = {}
        for stream, n in (("txt", TEXT), ("img", IMAGE)):
            own = [rows for rows, size in chosen if size == n]
            for i, block in enumerate(("double", "single")):
                rows = own[i] if own else torch.zeros(1, 0, dtype=torch.long)
                masks[block, stream] = torch.zeros(len(rows), n, dtype=torch.bool).scatter_(1, rows, True)
        return masks

    def check(self, model, live):
        """Compares the last hidden state of every step with the oracle's."""
        assert "".join(self.kinds) == PLAN
        oracle = InPlaceCache(model, live)
        for i, kind in enumerate(self.kinds):
            if kind == "F":
                expected = oracle.full(*self.inputs[i])
            elif kind == "C":
                before = dict(oracle.kept)
                expected = oracle.conservative(*self.inputs[i], self.masks[i])
                stale = InPlaceCache(model, live)
                stale.kept = before
                untouched = {k: torch.zeros_like(m) for k, m in self.masks[i].items()}
                assert not torch.allclose(
                    expected, stale.conservative(*self.inputs[i], untouched), atol=1e-3
                ), "the rows do not matter"
            else:
                expected = oracle.kept["final"]
            assert torch.allclose(self.finals[i], expected[:, TEXT:], atol=2e-5, rtol=1e-5), (
                f"step {i} ({kind})"
            )


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared rows", "rows per sample"])
@pytest.mark.parametrize("ratio", [0.25, 1.0])
@pytest.mark.parametrize("attention", ["frozen", "live"])
def test_reuse_and_conservative_steps_are_an_in_place_scatter(
    model, data, monkeypatch, attention, ratio, per_sample
):
    settings = CacheConfig(schedule=explicit(PLAN, ratio), attention=attention)
    Tape(model, data, settings, monkeypatch, per_sample).check(model, attention == "live")


@pytest.mark.parametrize("attention", ["frozen", "live"])
def test_text_and_image_have_ratios_of_their_own(model, data, monkeypatch, attention):
    settings = CacheConfig(schedule=explicit(PLAN, 0.5), text_ratio=0.2, attention=attention)
    tape = Tape(model, data, settings, monkeypatch)
    counts = {k: int(m.sum()) for k, m in tape.masks[1].items()}
    assert counts == {("double", "txt"): 1, ("double", "img"): 8, ("single", "txt"): 1, ("single", "img"): 8}
    tape.check(model, attention == "live")


@pytest.mark.parametrize("attention", ["frozen", "live"])
@pytest.mark.parametrize(
    "settings", [{"text_ratio": 0.0}, {"ratio": 0.0, "text_ratio": 0.6}], ids=["image only", "text only"]
)
def test_a_stream_may_stay_as_it_is(model, data, monkeypatch, attention, settings):
    settings = CacheConfig(schedule=explicit(PLAN, 0.5), attention=attention, **settings)
    tape = Tape(model, data, settings, monkeypatch)
    if settings.ratio == 0.0 and attention == "frozen":
        # Text reaches the image through attention alone, so the oracle's own check that rows matter looks at
        # the text.
        assert all(int(tape.masks[i]["double", "txt"].sum()) == 3 for i, k in enumerate(PLAN) if k == "C")
    tape.check(model, attention == "live")


def test_a_conservative_step_without_rows_replays_every_module(model, data, monkeypatch):
    """Ratio 0: the modules are replayed and re-gated with the running step's modulation; nothing in them is
    computed."""
    ran = []
    names = (
        "double_blocks.0.img_mlp",
        "double_blocks.0.img_attn.qkv",
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
    )
    handles = [model.get_submodule(n).register_forward_pre_hook(lambda *_, n=n: ran.append(n)) for n in names]
    try:
        tape = Tape(model, data, CacheConfig(schedule=explicit("FCCCCCC", 0.0)), monkeypatch)
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(ran) == sorted(names)  # once each, on the full step
    oracle = InPlaceCache(model, live=False)
    oracle.full(*tape.inputs[0])
    img, txt, vec, _ = tape.inputs[4]
    b, s = model.double_blocks[0], model.single_blocks[0]
    for stream, x in (("img", img), ("txt", txt)):
        first, second = getattr(b, stream + "_mod")(vec)
        x += oracle.kept[stream + "_attn"] * first.gate + oracle.kept[stream + "_mlp"] * second.gate
    final = torch.cat((txt, img), 1) + oracle.kept["out"] * s.modulation(vec)[0].gate
    assert torch.allclose(tape.finals[4], final[:, TEXT:], atol=1e-5)


def test_only_the_chosen_rows_are_computed(model, data, monkeypatch):
    sizes = {}
    places = {
        "double_blocks.0.img_mlp": IMAGE,
        "double_blocks.0.txt_mlp": TEXT,
        "single_blocks.0.linear1": IMAGE + TEXT,
        "single_blocks.0.linear2": IMAGE + TEXT,
    }

    def note(name):
        return lambda module, args: sizes.setdefault(name, []).append(args[0].shape[1])

    handles = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in places]
    try:
        Tape(model, data, CacheConfig(schedule=explicit("FCAFCCA", 0.3)), monkeypatch)
    finally:
        for handle in handles:
            handle.remove()
    few = {
        n: count_rows(0.3, TEXT) + count_rows(0.3, IMAGE) if "single" in n else count_rows(0.3, full)
        for n, full in places.items()
    }
    assert sizes == {n: [full, few[n], full, few[n], few[n]] for n, full in places.items()}


def test_value_norms_are_those_of_the_full_step(model, data, monkeypatch):
    """The selector is shown the norms of each layer's attention values, text and image apart."""
    shown, real = [], Selector.choose

    def spy(self, k, *, n, values=None, **kw):
        shown.append(values.clone())
        return real(self, k, n=n, values=values, **kw)

    monkeypatch.setattr(Selector, "choose", spy)
    cache = Controller(
        CacheConfig(schedule=explicit("FC", 0.3), selector=Selector("value_norm_high")), [1.0, 0.5, 0.0]
    )
    qkv = {}

    def note(name):
        def hook(module, args, out):
            qkv.setdefault(name, out)

        return hook

    places = ("double_blocks.0.txt_attn.qkv", "double_blocks.0.img_attn.qkv", "single_blocks.0.linear1")
    handles = [model.get_submodule(n).register_forward_hook(note(n)) for n in places]
    try:
        for own, sigma in zip(data, (1.0, 0.5)):
            evaluate(cache, model, sigma, data=own)
    finally:
        for handle in handles:
            handle.remove()
    cache.finish()
    heads, dim = model.double_blocks[0].num_heads, model.config.hidden

    def norms(projected):
        return value_norm(projected[..., 2 * dim : 3 * dim].unflatten(-1, (heads, -1)).transpose(1, 2))

    joint = norms(torch.cat((qkv["double_blocks.0.txt_attn.qkv"], qkv["double_blocks.0.img_attn.qkv"]), 1))
    single = norms(qkv["single_blocks.0.linear1"])
    for values, expected in zip(
        shown, (joint[:, :TEXT], joint[:, TEXT:], single[:, :TEXT], single[:, TEXT:]), strict=True
    ):
        assert torch.allclose(values, expected, atol=1e-6)


REFUSALS = {
    "mask": ({"attn_mask": torch.zeros(1, 1, 1, IMAGE + TEXT)}, "mask"),
    "patch": (
        {"transformer_options": {"patches": {"attn1_patch": [lambda q, k, v, **kw: {}]}}},
        "attn1_patch",
    ),
    "output patch": (
        {"transformer_options": {"patches": {"attn1_output_patch": [lambda out, extra: out]}}},
        "attn1_output_patch",
    ),
    "modulation": ({"modulation_dims": [(0, 4, 0)]}, "modulation"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_couples_tokens_in_another_way_is_refused_in_words(model, why):
    """Such a block runs untouched on the full step, and the branch says why its rows cannot be refreshed
    alone."""
    extra, word = REFUSALS[why]
    branch = Branch()
    call = Call("F", Batch([branch], Node(0.0, 1.0)), CacheConfig(), 0, 1, 0.1, (GRID, GRID), modules=True)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, IMAGE + TEXT, 256, generator=g)
    seen = {}
    blocks = blocks_of(model, find_family(model))
    for block in blocks:
        bound = {"vec": torch.randn(1, 256, generator=g), "pe": None, **extra}
        bound.update({"x": x} if block.spec.fused else {"img": x[:, TEXT:], "txt": x[:, :TEXT]})
        adapter_of(block.spec).record(lambda **kw: seen.update(kw), block, call, dict(bound))
        assert seen.keys() == bound.keys() and all(seen[k] is bound[k] for k in bound)
        assert word in branch.refusal and not branch.sites and not branch.kept
        branch.refusal = None
        seen.clear()
    assert {adapter_of(block.spec) for block in blocks} == {FluxDouble, FluxSingle}
