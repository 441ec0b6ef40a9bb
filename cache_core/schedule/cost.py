"""What a schedule costs: floating point operations and bytes of cache of a FLUX-like transformer.

Counted are the linear layers and the attention of the blocks, which reproduces the FLOPs that papers publish
for FLUX.1-dev and HunyuanVideo. Embeddings, modulation, norms, the final layer, gathering rows and the
sampler's own work are left out, so a speed-up from here is an ideal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from .masks import ALL, Mask, parts_of
from .plan import CacheSchedule

# FLOPs in d^2 per refreshed row of (double, single) blocks when attention is replayed. "published": a single
# block computes only the MLP columns of its fused first layer; "built": it runs the whole fused layer on
# those rows, because slicing is unsafe for quantised or patched weights.
LAYOUTS = {"published": (16, 18), "built": (16, 24)}


@dataclass(frozen=True)
class CostModel:
    """Size of a transformer with double-stream and fused single-stream blocks (MLP ratio 4) at one
    resolution.

    width: hidden size d. image_tokens, text_tokens: tokens per sample, n in sum. double, single: number of
        blocks of each sort. All FLOPs are for one sample and one pass; guidance multiplies every kind of step
        alike. Raises ValueError naming the field."""

    width: int
    image_tokens: int
    text_tokens: int
    double: int
    single: int

    def __post_init__(self) -> None:
        for size in fields(self):
            value, least = getattr(self, size.name), 1 if size.name in ("width", "image_tokens") else 0
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{size.name} must be a whole number of at least {least}.")
        if self.double + self.single < 1:
            raise ValueError("double and single must give at least one block in sum.")

    @property
    def tokens(self) -> int:
        return self.image_tokens + self.text_tokens

    def flops_full(self) -> int:
        """FLOPs of an F step: per block and token 24 d^2 for the linear layers and 4 n d for attention."""
        return (self.double + self.single) * self.tokens * (24 * self.width**2 + 4 * self.tokens * self.width)

    def flops_conservative(self, ratio: float, layout: str = "built", live_attention: bool = False) -> float:
        """FLOPs of a C step that refreshes the fraction `ratio` (0..1) of all tokens.

        layout: a key of LAYOUTS. With `live_attention` it has no effect: a refreshed row runs the whole
            block, its attention against kept keys and values."""
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}.")
        if not 0 <= ratio <= 1:
            raise ValueError("ratio must be a number from 0 to 1.")
        if live_attention:
            return ratio * self.flops_full()
        double, single = LAYOUTS[layout]
        return ratio * self.tokens * self.width**2 * (double * self.double + single * self.single)

    def flops_computed(self, names: Iterable[str]) -> int:
        """FLOPs of a C step that computes the named modules ("double.0", "double.0.attn", as in `masks`) on
        all tokens.

        Per token 8 d^2 and the attention for "attn", 16 d^2 for "mlp"; blocks that the model lacks cost
        nothing."""
        names, d = tuple(names), self.width
        costs = {"attn": self.tokens * (8 * d**2 + 4 * self.tokens * d), "mlp": self.tokens * 16 * d**2}
        total = 0
        for kind, count in (("double", self.double), ("single", self.single)):
            for i in range(count):
                parts = parts_of(names, (kind, i))
                if "" in parts:
                    total += sum(costs.values())
                elif kind == "double":
                    total += sum(costs.get(part, 0) for part in parts)
        return total

    def share(self, mask: Mask) -> float:
        """Work of a run by a mask whose other modules are replayed, as a share of an uncached one."""
        rows = (mask.at(step) for step in range(mask.steps))
        return (
            sum(1.0 if ALL in row else self.flops_computed(row) / self.flops_full() for row in rows)
            / mask.steps
        )


FLUX_DEV = CostModel(
    width=3072, image_tokens=4096, text_tokens=512, double=19, single=38
)  # FLUX.1-dev at 1024 x 1024


def estimated_speedup(
    schedule: CacheSchedule,
    cost: CostModel,
    layout: str = "built",
    live_attention: bool = False,
    aggressive: float = 0.0,
) -> float:
    """FLOPs of an uncached run over FLOPs of the schedule; 1.0 when every step is full.

    aggressive: work of an A step as a share of a full one, for recipes that run some blocks on every step.
    """
    kinds = schedule.counts()
    spent = kinds["F"] * cost.flops_full() + kinds["A"] * aggressive * cost.flops_full()
    mask = None if schedule.mask is None else Mask.from_json(schedule.mask)
    for i, (kind, ratio) in enumerate(zip(schedule.kinds, schedule.ratios, strict=True)):
        if kind == "C":
            spent += (
                cost.flops_computed(mask.at(i))
                if mask
                else cost.flops_conservative(ratio, layout, live_attention)
            )
    return schedule.steps * cost.flops_full() / spent


LATENT_VALUES = 64  # per image token in the model's output: 2 x 2 latent pixels of 16 channels


def peak_bytes(
    schedule: CacheSchedule,
    cost: CostModel,
    *,
    snapshots: int = 1,
    module_snapshots: int = 1,
    bytes_per_value: int = 2,
    branches: int = 1,
    live_attention: bool = False,
    level: str = "final",
) -> int:
    """Bytes of cache held at once, which is what stands after the last history has filled; 0 when nothing is
    skipped.

    `snapshots` (at most one per full step) of what the level of A steps keeps: the final hidden state or a
    run's residual of n * d values, the model's output, or one residual per block, and one correction of it
    with C steps. With C steps or at the level of modules: per double block the pre-gate outputs of attention
    and MLP of both streams (2 n d), per single block its output (n d), and for C steps the attention before
    its second linear layer (n d), all `module_snapshots` times, or `snapshots` times at the level of modules.
    C steps keep a correction of every MLP (n d per block), with live attention also of the attention of
    double blocks. A schedule with a mask keeps no attention of single blocks, and up to one correction per
    module; one with runs only a feature per run.
    live_attention: keys and values of the newest F step (2 n d per block) are kept instead of the attention
        outputs.
    branches: cached streams, such as 2 for cond and uncond, times the batch.
    """
    counted = {
        "snapshots": snapshots,
        "module_snapshots": module_snapshots,
        "bytes_per_value": bytes_per_value,
        "branches": branches,
    }
    for name, value in counted.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1.")
    kinds = schedule.counts()
    snapshots = min(snapshots, kinds["F"])
    blocks, feature = cost.double + cost.single, cost.tokens * cost.width
    modules = snapshots if level == "module" else min(module_snapshots, kinds["F"])
    mask, values = schedule.mask and Mask.from_json(schedule.mask), 0
    if mask and mask.runs:
        named = [
            (kind, i)
            for kind, count in (("double", cost.double), ("single", cost.single))
            for i in range(count)
        ]
        return (kinds["C"] > 0) * snapshots * len(mask.held(named)) * feature * bytes_per_value * branches
    if level != "module" and (kinds["A"] or kinds["C"]):
        kept = {"output": cost.image_tokens * LATENT_VALUES, "block": blocks * feature}
        values += (snapshots + (kinds["C"] > 0)) * kept.get(level, feature)
    if mask:
        values += (2 * cost.double + cost.single) * (modules + (kinds["C"] > 0)) * feature
    elif kinds["C"]:
        values += (
            blocks * (modules + 2 if live_attention else 2 * modules) + live_attention * cost.double + blocks
        ) * feature
    elif kinds["A"] and level == "module":
        values += (2 * cost.double + cost.single) * modules * feature
    return values * bytes_per_value * branches
