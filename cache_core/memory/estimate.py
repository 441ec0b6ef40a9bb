"""How many bytes the caches of a run will hold, from the model's blocks and the sizes of its tokens, before
anything is kept.

The plan is followed step by step: every full step adds a snapshot, and corrections are held from a
conservative step to the next full one. The estimate leaves out what a forecast learns beside them (labels of
channels, gains), which is less than one token per site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import nn

from ..config import CacheConfig
from ..hooks.module_replay import present
from ..models.block_spec import BlockSpec, Family
from ..models.families import Block
from ..schedule.masks import Mask
from ..selectors.token_selection import count_rows

Sizes = Mapping[str, tuple[int, int]]
"""Tokens per sample and width of each main tensor that goes into a block."""


@dataclass(frozen=True)
class Shapes:
    """Sizes in one branch of one model.

    blocks: of what goes into each kind of block, in running order.
    output: values of the model's output per sample.
    bytes_per_value: of the tokens and of the output.
    samples: in the branch."""

    blocks: Mapping[str, Sizes]
    output: int
    bytes_per_value: int = 2
    samples: int = 1

    def at(self, block: Block) -> Sizes:
        """Of a block; where its kind has not been seen they follow from those before."""
        if block.name[0] in self.blocks or not self.blocks:
            return self.blocks.get(block.name[0], {})
        before: dict[str, tuple[int, int]] = {}
        for sizes in self.blocks.values():
            before.update(sizes)
        joint = (sum(n for n, _ in before.values()), max(d for _, d in before.values()))
        if block.spec.joined:
            return {block.spec.streams[0]: joint}
        return {s: before.get(s, joint) for s in block.spec.streams}


@dataclass(frozen=True)
class Footprint:
    """Bytes of one branch at the worst moment of a run.

    snapshots: of full steps, which may lie elsewhere between two uses. rest: corrections, probes, keys and
        values. largest: the snapshots of the largest site.
        pinned: what the snapshots take in pinned main memory."""

    snapshots: int = 0
    rest: int = 0
    largest: int = 0
    pinned: int = 0

    @property
    def total(self) -> int:
        return self.snapshots + self.rest


def _area(sizes: Sizes, streams=None) -> int:
    return sum(n * d for s, (n, d) in sizes.items() if streams is None or s in streams)


def _level_sites(level: str, blocks: Sequence[Block], shapes: Shapes) -> list[int]:
    """Values of each site where aggressive steps put features back; modules are not among them."""
    if level == "output" or not blocks:
        return [shapes.output]
    if level in ("final", "stack"):
        return [_area(shapes.at(blocks[-1]), (s,)) for s in blocks[-1].spec.reads]
    if level == "block":
        return [n * d for b in blocks for n, d in shapes.at(b).values()]
    return []


def _run_sites(mask: Mask, blocks: Sequence[Block], shapes: Shapes) -> list[int]:
    """Values of the deltas of a mask's runs, one per stream."""
    return [
        n * d for _, last in mask.held([b.name for b in blocks]) for n, d in shapes.at(blocks[last]).values()
    ]


@dataclass(frozen=True)
class _Module:
    """A module's site.

    key: its name.
    values: per sample.
    part: of the block, as a mask may name it.
    rows: the streams of which a conservative step refreshes rows."""

    key: tuple
    values: int
    part: str = ""
    rows: tuple[str, ...] = ()


def _modules(block: Block, sizes: Sizes, live: bool) -> Iterator[_Module]:
    """The sites of a block's modules, as `record` makes them."""
    spec = block.spec
    for path in present(block, spec.modules):
        streams, part = spec.streams_of(path), spec.part(path)
        refreshed = path in spec.rows or (live and spec.adapter is not None)
        yield _Module(
            (*block.name, path),
            _area(sizes, streams),
            part,
            (spec.joined if spec.fused else streams) if refreshed else (),
        )


def _refreshed(settings: CacheConfig, ratio: float, sizes: Sizes, streams: tuple[str, ...]) -> float:
    """Share of the rows of these streams that a conservative step computes."""
    known = [(s, max(sizes.get(s, (1, 0))[0], 1)) for s in streams]

    def share(name: str) -> float:
        return settings.text_ratio if name == "txt" and settings.text_ratio is not None else ratio

    total = sum(n for _, n in known)
    return sum(count_rows(share(s), n) for s, n in known) / total if total else 0.0


def footprint(
    settings: CacheConfig,
    kinds: str,
    ratios: Sequence[float],
    mask: Mask | None,
    blocks: Sequence[Block],
    shapes: Shapes,
    first: int = 0,
    conserves: bool = False,
) -> Footprint:
    """What one branch holds at the worst moment of a run; nothing when no step is skipped.

    settings: as fitted to the model. kinds, ratios: of its steps, as in `CacheSchedule`. first: see
        `CacheConfig.blocks_run`. conserves: whether the model can run conservative steps."""
    conservative = conserves and "C" in kinds
    if "A" not in kinds and not conservative:
        return Footprint()
    live, level = settings.attention == "live", settings.level
    runs = mask is not None and mask.runs
    sites = _run_sites(mask, blocks, shapes) if mask and runs else _level_sites(level, blocks, shapes)
    rows = conservative and mask is None
    modules: list[_Module] = []
    fixed = 0  # bytes that do not grow with the run
    item = shapes.bytes_per_value
    if not runs and (conservative or level == "module"):
        for block in blocks:
            sizes = shapes.at(block)
            modules += _modules(block, sizes, live)
            if not rows or block.spec.adapter is None:
                continue
            if live:
                fixed += 2 * _area(sizes) * item
            elif block.spec.fused:
                modules.append(_Module((*block.name, "attn"), _area(sizes), "none"))
            if settings.selector.score != "random":
                fixed += 4 * sum(n for n, _ in sizes.values())
    probe = _probe(settings, blocks, shapes, first)
    full, corrected, worst = 0, {}, Footprint()
    for step, kind in enumerate(kinds):
        if not full or kind == "F" or (kind == "C" and not conservative):
            full, corrected = full + 1, {}
        elif kind == "C" and not runs:  # whose deltas are those of full steps
            corrected.update((("level", i), v) for i, v in enumerate(sites))
            for m in modules:  # each conservative step adds the rows that it computes
                share = _computed(m, settings, ratios[step], shapes, mask and mask.at(step))
                if share:
                    before = 0 if mask else corrected.get(m.key, 0)
                    corrected[m.key] = before + share * m.values
        kept, kept_modules = min(full, settings.predictor.needs), min(full, settings.modules.needs)
        snapshots = kept * sum(sites) + kept_modules * sum(m.values for m in modules)
        each = [(kept, v) for v in sites] + [(kept_modules, m.values) for m in modules]
        looks = kept + (step + 1 < len(kinds))  # that of the next step lies beside those of full ones
        rest = round(sum(corrected.values()) + looks * probe) * item + fixed
        if snapshots * item + rest > worst.total:
            largest = max([kept * v for v in sites] + [kept_modules * m.values for m in modules], default=0)
            pinned = sum(n * _pinned(shapes.samples * v * item) for n, v in each)
            worst = Footprint(snapshots * item, rest, largest * item, pinned)
    snapshots, rest, largest = (shapes.samples * v for v in (worst.snapshots, worst.rest, worst.largest))
    return Footprint(snapshots, rest, largest, worst.pinned)


def _pinned(size: int) -> int:
    """Bytes of pinned memory that torch takes for a tensor: the next power of two."""
    return 1 << max(size - 1, 0).bit_length()


def _computed(module: _Module, settings, ratio: float, shapes: Shapes, names) -> float:
    """Share of this module's rows that a conservative step leaves a correction of."""
    block = ".".join(map(str, module.key[:2]))
    if names is not None:
        return float(
            module.part != "none"
            and (block in names or bool(module.part and f"{block}.{module.part}" in names))
        )
    first = next(iter(shapes.blocks.values()), {})
    return _refreshed(settings, ratio, first, module.rows)


def _probe(settings: CacheConfig, blocks: Sequence[Block], shapes: Shapes, first: int) -> int:
    """Values of the probe that a forecast needs of a step, which is kept for each of its full steps."""
    if settings.level == "output" and settings.predictor.probe == "latent":
        return shapes.output
    probe = settings.predictor.probe if settings.level in ("final", "stack") else None
    if probe is None or not blocks:
        return 0
    block = blocks[min(first, len(blocks) - 1)]
    sizes, spec = shapes.at(block), block.spec
    if probe == "block":
        return _area(sizes, spec.reads[:1])
    if spec.adapter is not None:
        return _area(sizes)
    if spec.probe is None and not spec.modules:
        return 0
    places = spec.probe[1] if spec.probe else (0,)
    return _area(sizes) if len(places) > 1 else _area(sizes, ("img",) if "img" in sizes else tuple(sizes)[:1])


# --- before the first call -----------------------------------------------------------------------


_UNPATCHED = ("LTX-Video", "LTX-2", "Lens", "Ideogram 4")
"""Families whose latents are tokens already, whatever patch size they name."""
_WIDTHS = (
    "hidden_size",
    "hidden_size_x",
    "dim",
    "inner_dim",
    "model_channels",
    "hidden_dim",
    "model_dim",
    "embed_dim",
    "d_model",
    "width",
    "features",
)
_PATCHES = ("patch_size", "patch_spatial")


def _attribute(model: nn.Module, names: Sequence[str], kind: type | tuple[type, ...] = int):
    """The first of these attributes that a model, its parameters or its configuration has."""
    for holder in (
        model,
        getattr(model, "params", None),
        getattr(model, "config", None),
        getattr(model, "tconf", None),
    ):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, kind) and not isinstance(value, bool):
                return value
    return None


def _width(model: nn.Module, block: Block) -> int | None:
    """Hidden width: by its name in the model, else by what the first block's last linear layer gives."""
    found = _attribute(model, _WIDTHS)
    if found is not None:
        return found
    linear = [m for m in block.module.modules() if isinstance(m, nn.Linear)]
    return linear[-1].out_features if linear else None


def _tokens(model: nn.Module, family: Family, latent: Sequence[int]) -> int:
    """Tokens of a latent [C,(T,)H,W] or [C,L] by the model's patch size."""
    patch = 1 if family.name in _UNPATCHED else _attribute(model, _PATCHES, (int, tuple, list))
    space = tuple(latent[1:])
    if patch is None:
        patch = 1 if len(space) == 1 else 2
    if isinstance(patch, int):
        patch = (1,) * (len(space) - 2) + (patch,) * min(len(space), 2)
    patch = (1,) * (len(space) - len(patch)) + tuple(patch)[-len(space) :] if space else ()
    return prod(ceil(n / p) for n, p in zip(space, patch))


def expected_shapes(
    model: nn.Module,
    family: Family | None,
    blocks: Sequence[Block],
    latents: Sequence[Sequence[int]],
    text: int,
    dtype: torch.dtype,
    samples: int = 1,
) -> Shapes | None:
    """Shapes of a branch before the model has been called: tokens by the patch size, text as long as it comes
    from its encoder.

    latents: sizes without the batch, [C,(T,)H,W], of the picture or video and of what stands beside it as
        tokens (reference latents).
    text: its tokens. None where the model tells no width. What a model pads, drops or adds of its own shows
        at the first call only."""
    item = torch.empty((), dtype=dtype).element_size()
    output = prod(latents[0])
    if family is None or not blocks:
        return Shapes({}, output, item, samples)
    width = _width(model, blocks[0])
    if width is None:
        return None
    image, first = sum(_tokens(model, family, latent) for latent in latents), blocks[0].spec
    if len(first.streams) > 1:
        second = (0, width) if first.packed else (text, width)
        streams = {s: (image, width) if s == first.reads[0] else second for s in first.streams}
    else:
        tokens = image + (0 if _reads_text_by_cross_attention(first) else text)
        streams = dict.fromkeys(first.streams, (tokens, width))
    return Shapes({blocks[0].name[0]: streams}, output, item, samples)


def _reads_text_by_cross_attention(spec: BlockSpec) -> bool:
    """Whether the blocks read text through cross-attention, so that it is no token of theirs."""
    return not spec.modules or any(
        path.startswith(("cross_attn", "cross_attention", "attn2")) for path in spec.modules
    )
