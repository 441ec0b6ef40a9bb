"""Which tokens a conservative step refreshes: a score per token, then the best ones, overall or one per
stretch of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as nnf

SCORES = ("random", "value_norm_high", "value_norm_low")


def count_rows(ratio: float, n: int) -> int:
    """Tokens that a ratio of n makes: floor(ratio * n), at least 1 when ratio > 0, at most n. ValueError
    outside 0..1."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie between 0 and 1, not {ratio}.")
    # 0.29 * 100 is 28.999... in binary and means 29.
    return min(n, max(math.floor(ratio * n + 1e-6), 1)) if ratio > 0 else 0


def value_norm(v: torch.Tensor) -> torch.Tensor:
    """Value norms [B,N], float32, of attention values v [B,heads,N,D]: mean over heads of ||v||_2, with L2
    norm 1 over the tokens.

    V-caching (DuCa, arXiv 2412.18911). Which end is refreshed, large or small norms, is the selector's
    choice: published codes differ."""
    if v.ndim != 4:
        raise ValueError(f"v must be [batch, heads, tokens, width], not {list(v.shape)}.")
    return nnf.normalize(torch.linalg.vector_norm(v, dim=-1, dtype=torch.float32).mean(1), dim=-1)


@dataclass(frozen=True)
class Selector:
    """A rule that chooses k of n tokens (ToCa, arXiv 2410.05317, section 3; DuCa).

    score: "random" (DuCa's final choice), "value_norm_high" or "value_norm_low" (V-caching, either sign).
    staleness: weight of a token's age in units of the caching interval (ToCa S3).
    spatial_bonus: in each `cell` x `cell` block of the token grid the best token's score grows by this share
        (ToCa S4).
    stratified: cut the tokens into k stretches and take the best of each; None does so for random scores
        only."""

    score: str = "random"
    staleness: float = 0.25
    spatial_bonus: float = 0.0
    cell: int = 2
    stratified: bool | None = None

    def __post_init__(self):
        if self.score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, not {self.score!r}.")
        for name in ("staleness", "spatial_bonus"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}.")
        if not isinstance(self.cell, int) or self.cell < 1:
            raise ValueError(f"cell must be a whole number of at least 1, not {self.cell!r}.")

    @property
    def needs_values(self) -> bool:
        """Whether `choose` wants value norms."""
        return self.score != "random"

    def choose(
        self,
        k: int,
        *,
        n: int,
        values: torch.Tensor | None = None,
        age: torch.Tensor | None = None,
        grid: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        random: torch.Tensor | None = None,
        interval: float | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """Indices of min(k, n) of n tokens: int64 [1,k] or [B,k], ascending and distinct in each row.

        values: value norms [B,n] as `value_norm` makes them, for the value-norm scores.
        age: steps since each token was computed, [1,n] or [B,n], with `interval`, the steps from one full
            step to the next.
        grid: (height, width) of the first height * width tokens, for the bonus; tokens behind it get none.
        generator: the only source of randomness; one draw serves all rows, so a row's choice never depends on
            the others.
        random: numbers [rows,n] from 0 to 1 instead of a generator, a choice for each row, as `draw` makes
            them.
        device: of the result, by default that of values, age or generator. ValueError where a score lacks its
            input."""
        k = max(0, min(int(k), n))
        values = values if self.needs_values else None
        age = age if self.staleness > 0 else None
        bonus = self.spatial_bonus > 0 and grid is not None
        self._check(
            n, values, age, grid if bonus else None, generator if random is None else random, interval
        )
        if device is None:
            device = next((x.device for x in (values, age, random, generator) if x is not None), None)
        rows = max([x.shape[0] for x in (values, age, random) if x is not None], default=1)
        if k in (0, n):
            return torch.arange(k, device=device).expand(rows, k)

        if values is not None:
            score = self._value_score(values.to(device, torch.float32))
        elif random is not None:
            score = random.to(device)
        else:
            assert generator is not None  # checked above
            # Drawn on the generator's own device, so that one seed means one choice wherever the model runs.
            score = torch.rand(1, n, generator=generator, device=generator.device).to(device)
        if age is not None and interval is not None:
            score = torch.add(score, age.to(device, torch.float32), alpha=self.staleness / interval)
        if bonus and grid is not None:
            score = self._with_bonus(score, *grid)
        if self.stratified if self.stratified is not None else self.score == "random":
            return _best_of_strata(score, k)
        # A stable sort, because topk breaks ties differently for different batch sizes.
        return score.sort(dim=-1, descending=True, stable=True).indices[:, :k].sort(dim=-1).values

    def _value_score(self, values):
        # Both signs count from 0 upwards, as a bonus that is a share of the score needs it; the order of
        # tokens is the same.
        return values if self.score == "value_norm_high" else values.amax(-1, keepdim=True) - values

    def _with_bonus(self, score, height, width):
        best, where = nnf.max_pool2d(
            score[:, : height * width].unflatten(1, (1, height, width)),
            self.cell,
            ceil_mode=True,
            return_indices=True,
        )
        return score.scatter(1, where.flatten(1), best.flatten(1) * (1 + self.spatial_bonus))

    def _check(self, n, values, age, grid, generator, interval):
        if self.needs_values and values is None:
            raise ValueError(f"values must be given for the score {self.score}.")
        if not self.needs_values and generator is None:
            raise ValueError("generator must be given for the score random.")
        if values is not None and (values.ndim != 2 or values.shape[1] != n):
            raise ValueError(f"values must be [batch, {n}], not {list(values.shape)}.")
        if age is not None:
            if age.ndim != 2 or age.shape[1] != n:
                raise ValueError(f"age must be [batch, {n}], not {list(age.shape)}.")
            if (
                values is not None
                and values.shape[0] != age.shape[0]
                and 1 not in (values.shape[0], age.shape[0])
            ):
                raise ValueError(
                    f"age must have 1 or {values.shape[0]} rows like values, not {age.shape[0]}."
                )
            if interval is None or not interval > 0:
                raise ValueError(f"interval must be above 0 where ages count, not {interval}.")
        if grid is not None and (min(grid) < 1 or grid[0] * grid[1] > n):
            raise ValueError(f"grid must be (height, width) of at most {n} tokens, not {tuple(grid)}.")


def draw(seeds: Sequence[int], n: int, device: torch.device | str) -> torch.Tensor:
    """Random numbers [len(seeds),n] on a device, each row from a seed of its own, by one copy for which the
    host does not wait."""
    cuda = torch.device(device).type == "cuda"
    numbers = torch.empty(len(seeds), n, pin_memory=cuda)
    for row, seed in zip(numbers, seeds):
        torch.rand(n, generator=torch.Generator().manual_seed(seed), out=row)
    return numbers.to(device, non_blocking=cuda)


@lru_cache(maxsize=32)
def _strata(n: int, k: int, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where k stretches of n tokens begin [k], the tokens of each [k,w], and which of these lie behind its
    end.

    Kept on the device, since every stream of every block asks; `forget` lets go of it.
    """
    edges = torch.arange(k + 1, device=device) * n // k
    cells = edges[:-1, None] + torch.arange(-(-n // k), device=device)
    return edges[:-1], cells.clamp(max=n - 1), cells >= edges[1:, None]


def forget() -> None:
    """Frees what choosing has kept on the device, at the end of a run."""
    _strata.cache_clear()


def _best_of_strata(score, k):
    """The best token of each of k stretches of consecutive tokens whose lengths differ by at most one: [B,n]
    to [B,k], k < n."""
    first, cells, behind = _strata(score.shape[1], k, score.device)
    return first + score[:, cells].masked_fill(behind, -math.inf).argmax(-1)
