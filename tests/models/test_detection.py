"""Blocks found in models that the table does not know: right ones are skipped, wrong guesses end at the
model's output."""

import pytest
import torch
from torch import nn

from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.models.capabilities import levels_of
from cache_core.models.detection import detect
from cache_core.models.families import blocks_of
from cache_core.recipes import settings_of
from cache_core.schedule.plan import explicit
from tests.tiny_flux import assert_untouched

WIDTH = 8
STILL = [0.9] * 6 + [0.0]


class Block(nn.Module):
    runs = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden, sigma):
        Block.runs += 1
        return hidden + 0.3 * self.layer(hidden) * sigma


class Unknown(nn.Module):
    """A model of which the table knows nothing. way: what it does otherwise than one block after the
    other."""

    def __init__(self, way="", count=5):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.first, self.layers = nn.Linear(WIDTH, WIDTH), nn.ModuleList(Block() for _ in range(count))
        self.head = nn.Linear(2 * WIDTH if way == "widens" else WIDTH, WIDTH)
        self.requires_grad_(False)

    def forward(self, x, sigma):
        h, kept = self.first(x), 0.0
        for i, block in enumerate(reversed(self.layers) if self.way == "backwards" else self.layers):
            if self.way == "pairs":
                h = block((h, h)[i % 2], sigma)
            elif self.way == "half":
                h = torch.cat([block(h[:, :3], sigma), h[:, 3:]], 1)
            elif self.way == "skips the last" and i == len(self.layers) - 1:
                continue
            else:
                h = block(h, sigma)
            kept = kept + h if self.way == "sums" else kept
        return self.head(torch.cat([h, h], -1) if self.way == "widens" else h + kept) * sigma


def data(seed=0):
    return torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(seed))


def sampled(model, level="final", kinds="FAFAFA", detects=True):
    """A run at one input: kinds, messages, how many blocks the aggressive steps ran; every result is as
    without the cache."""
    cache, exact, ran = (
        Controller(CacheConfig(schedule=explicit(kinds), level=level, detect=detects), STILL),
        model(data(), 0.9),
        0,
    )
    for _ in kinds:
        cache.begin_evaluation(0.9)
        Block.runs = 0
        with cache.call(model, ["cond"]) as kind:
            out = model(data(), 0.9)
        assert torch.equal(out, exact) if kind == "F" else torch.allclose(out, exact, atol=1e-5)
        ran += Block.runs if kind == "A" else 0
        assert_untouched(model)
    report = cache.finish()
    assert report.family == ""
    return "".join(r.actual for r in report.records), report.messages, ran


FOUND = (
    "Unknown is not a model this pack knows; the 5 blocks found at layers are taken for its own, "
    "which is experimental."
)
WHOLE = "Of blocks that were guessed, aggressive steps put back the final hidden state."
OUTPUT = "aggressive steps put back the model's output."


@pytest.mark.parametrize("way", ["", "pairs", "widens", "half"])
def test_blocks_that_are_found_are_skipped(way):
    assert sampled(Unknown(way)) == ("FAFAFA", [FOUND], 0)


@pytest.mark.parametrize("level", ["stack", "block", "module"])
def test_a_guess_is_cached_as_a_whole(level):
    """The self-check looks at one block of a class, and blocks of an unknown model may differ by their
    place."""
    assert sampled(Unknown(), level) == ("FAFAFA", [FOUND, WHOLE], 0)
    assert levels_of(detect(Unknown())) == ("output", "final")


def test_the_model_output_of_a_guess_can_be_cached():
    assert sampled(Unknown(), "output") == ("FAFAFA", [FOUND], 0)


@pytest.mark.parametrize("way", ["sums", "backwards", "skips the last"])
@pytest.mark.parametrize("level", ["final", "stack"])
def test_a_wrong_guess_ends_at_the_output(way, level):
    kinds, messages, _ = sampled(Unknown(way), level)
    assert messages[0] == FOUND and messages[-1].endswith(OUTPUT) and kinds.endswith("FA")


@pytest.mark.parametrize(
    "model", [Unknown(count=3), nn.Sequential(*[Block() for _ in range(6)])], ids=["few", "no list"]
)
def test_nothing_is_found_where_there_is_no_such_list(model):
    assert detect(model) is None


def test_lists_with_less_than_half_of_the_weights_are_left_alone():
    model = Unknown()
    model.large = nn.Linear(64, 64)
    assert detect(model) is None


def test_the_row_of_a_guess_names_the_argument_of_its_blocks():
    row, model = detect(Unknown()), Unknown()
    assert row.lists[0][2].takes == (("hidden", "hidden", 0),) and [
        b.module for b in blocks_of(model, row)
    ] == list(model.layers)


def test_it_is_off_until_a_recipe_asks_for_it():
    messages = ["Unknown is not a model this pack knows; aggressive steps put back the model's output."]
    assert sampled(Unknown(), detects=False)[:2] == ("FAFAFA", messages)
    recipe = {"name": "mine", "generator": {"type": "full"}}
    assert not settings_of(recipe).detect and settings_of({**recipe, "detect": True}).detect
    with pytest.raises(ValueError, match="detect must be true or false, not 1"):
        settings_of({**recipe, "detect": 1})


# --- other structures of blocks -----------------------------------------------------------------------------


class TwoStreams(Block):
    """Takes and returns two tensors."""

    def forward(self, hidden, other, sigma):
        return super().forward(hidden, sigma) + 0.1 * other.mean(), other + 0.2 * hidden


class Packed(Block):
    """Takes and returns a tuple."""

    def forward(self, pair, sigma):
        return super().forward(pair[0], sigma), pair[1] + 0.2 * pair[0]


class Writes(Block):
    """Writes into both of its tensors; the model goes on with what it gave them."""

    def forward(self, hidden, other, sigma):
        hidden.add_(0.3 * self.layer(hidden) * sigma)
        other.add_(0.2 * hidden)
        Block.runs += 1
        return hidden


class Bare(nn.Module):
    """Its weights are in no module inside it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)

    def forward(self, hidden, sigma):
        Block.runs += 1
        return hidden + 0.3 * (hidden @ self.weight) * sigma


class Other(Unknown):
    """A model whose blocks are called in another way. kind: of block; way: of the calls."""

    def __init__(self, kind, way):
        super().__init__()
        self.kind, self.way = kind, way
        self.layers = nn.ModuleList(kind() for _ in range(5)).requires_grad_(False)
        self.after = nn.ModuleList(Block() for _ in range(2)).requires_grad_(False)

    def _run(self, block, h, other, sigma, last):
        """What the model makes of one block, (h, other)."""
        if self.kind is Packed:
            return block((h, other), sigma)
        out = block(h, other, sigma) if self.kind in (TwoStreams, Writes) else None
        if self.kind is TwoStreams:
            return out
        if self.kind is Writes:
            return (h, other) if self.way == "ignores what is returned" else (out, other)
        if self.way == "by a function" or (self.way == "by a function but the last" and not last):
            return self.kind.forward(block, h, sigma), other
        return block(h, sigma), other

    def forward(self, x, sigma):
        h, other = self.first(x), x * 1.0
        first = None
        for i, block in enumerate(self.layers):
            h, other = self._run(block, h, other, sigma, i == len(self.layers) - 1)
            first = h.clone() if i == 0 else first
        if self.way == "blocks behind":
            for block in self.after:
                h = block(h, sigma)
        if self.way == "reads the first":
            h = h + first
        return self.head(h + other) * sigma


STRUCTURES = [
    (TwoStreams, "", False),
    (Packed, "", False),
    (Writes, "", False),
    (Writes, "ignores what is returned", False),
    (Block, "by a function", False),
    (Block, "by a function but the last", False),
    (Bare, "by a function but the last", False),
    (Block, "reads the first", False),
    (Block, "blocks behind", True),
    (Bare, "", True),
]
"""Kinds of blocks, ways in which a model calls them, and whether the guess is right."""


@pytest.mark.parametrize(("kind", "way", "right"), STRUCTURES, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("kinds", ["FAFAFA", "FFFAAF"])
def test_other_structures_are_right_or_end_at_the_output(kind, way, right, kinds):
    """Results are compared in `sampled`. A guess that is right skips its blocks, another one everything."""
    ran, messages, count = sampled(Other(kind, way), kinds=kinds)
    assert "A" in ran
    if right:
        behind = 2 if way == "blocks behind" else 0
        assert (messages, count) == ([FOUND.replace("Unknown", "Other")], behind * ran.count("A"))
    else:
        wrong = (
            "The blocks found in Other do not work as one stack that can be skipped; aggressive steps put "
            "back the model's output."
        )
        assert (messages, count) == ([FOUND.replace("Unknown", "Other"), wrong], 0)
