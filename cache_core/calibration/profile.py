"""What is learned about a model once: inner products of its final hidden states, and of its modules' outputs,
along uncached runs.

A forecast is a weighted sum of snapshots, so every error that it can make is a quadratic form of these
products. A profile holds them per sample, some kilobytes each, and says which runs it holds for; no feature
is kept. Files are safetensors with JSON metadata."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..base.coordinates import same_levels
from ..base.limits import DIGITS, MAX_STEPS, MOST_CHANNELS
from ..schedule.masks import MAX_NAMES

FORMAT, KIND = 1, "cache_profile"
IDENTITY = ("model", "level", "sampler", "guidance", "resolution")
"""What a profile holds for, beside its noise levels."""
LARGEST_FILE = 1 << 30
MOST_CLUSTERS, MOST_PROMPTS = len(DIGITS), 100_000
SINGLE = ("path", "tokens", "clusters")
"""Tensors that files hold in single precision."""
DENSEST = 1.5
"""Steps that may be planned per recorded one: between recorded steps features count as lines, which are
forecast without error."""


@dataclass(frozen=True)
class Clusters:
    """Channels told apart by how they move (HyCa, arXiv 2510.04188): labels [d], uint8, and their Gram
    matrices [samples, K, T, T].

    The matrices are in the unit of `Profile.grams`, of which they are the parts.
    """

    labels: torch.Tensor
    grams: torch.Tensor


@dataclass(frozen=True)
class Profile:
    """Gram matrices [samples, T, T], float64, of features at the T steps of a run, each divided by the mean
    energy of its own sample.

    sigmas: the T + 1 noise levels. identity: texts and numbers by the names of `IDENTITY`. resampled: from
        how many steps, where the profile was adapted to another step count, else None. modules: the same
        matrices of module outputs before their gates, with samples of their own, by the names of `masks` in
        running order; most profiles have none. path: [samples, 2 T + 1, 2 T + 1], mean products per value of
        what the model was given (T), of its outputs (T) and of ones, which make sums of the others; None
        where it was not recorded.
    clusters: the matrices by channel, or None. tokens: [samples, T, 4], mean and deviation over the tokens of
        their lengths, and of the ratio to their lengths one step before; None where unknown. prompts: marks
        of recorded runs, by which a list of them is resumed. Raises ValueError naming the field."""

    grams: torch.Tensor
    sigmas: tuple[float, ...]
    identity: Mapping = field(default_factory=dict)
    resampled: int | None = None
    modules: Mapping[str, torch.Tensor] = field(default_factory=dict)
    path: torch.Tensor | None = None
    clusters: Clusters | None = None
    tokens: torch.Tensor | None = None
    prompts: tuple[str, ...] = ()

    def __post_init__(self):
        steps = len(self.sigmas) - 1
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"sigmas must hold 2 to {MAX_STEPS + 1} noise levels.")
        if not all(map(math.isfinite, self.sigmas)):
            raise ValueError("sigmas must be finite numbers.")
        if len(self.modules) > MAX_NAMES or not all(
            isinstance(name, str) and len(name) <= 100 for name in self.modules
        ):
            raise ValueError(f"modules must be at most {MAX_NAMES} names and matrices.")
        for name, gram in (
            ("grams", self.grams),
            *((f"modules.{name}", gram) for name, gram in self.modules.items()),
        ):
            _check(name, gram, steps)
        if self.path is not None:
            _check("path", self.path, 2 * steps + 1)
        if self.clusters is not None:
            _check_clusters(self.clusters, steps)
        if self.tokens is not None and (
            not self.tokens.is_floating_point()
            or self.tokens.shape[1:] != (steps, 4)
            or len(self.tokens) < 1
            or not torch.isfinite(self.tokens).all()
            or (self.tokens < 0).any()
        ):
            raise ValueError(f"tokens must be [samples, {steps}, 4] lengths and ratios.")
        if len(self.prompts) > MOST_PROMPTS or not all(
            isinstance(p, str) and len(p) <= 100 for p in self.prompts
        ):
            raise ValueError(f"prompts must be at most {MOST_PROMPTS} short texts.")

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def merged(self, other: Profile) -> Profile:
        """Both profiles' samples; ValueError says what differs where they are not of the same kind of run."""
        wrong = self.differences(other.identity, other.sigmas)
        if wrong:
            raise ValueError(f"profiles of different runs cannot be merged: {wrong[0]}.")
        parts = [p.clusters for p in (self, other) if p.clusters is not None]
        if len(parts) > 1 and not torch.equal(parts[0].labels, parts[1].labels):
            raise ValueError("profiles with other clusters of channels cannot be merged.")
        names = {**self.modules, **other.modules}
        return Profile(
            torch.cat([self.grams, other.grams]),
            self.sigmas,
            self.identity,
            self.resampled,
            {
                name: torch.cat([p.modules[name] for p in (self, other) if name in p.modules])
                for name in names
            },
            _together(self.path, other.path),
            Clusters(parts[0].labels, torch.cat([p.grams for p in parts])) if parts else None,
            _together(self.tokens, other.tokens),
            self.prompts + other.prompts,
        )

    def differences(self, identity: Mapping, sigmas=None) -> list[str]:
        """What of a run differs from the profile, as a sentence; empty where it fits. Fields the run does not
        tell are not compared."""
        wrong = [
            f"{name} is {identity[name]}, the profile's {self.identity[name]}"
            for name in IDENTITY
            if name in identity and name in self.identity and identity[name] != self.identity[name]
        ]
        if sigmas is not None:
            if len(sigmas) != len(self.sigmas):
                wrong.append(f"the run has {len(sigmas) - 1} steps, the profile {self.steps}")
            elif not same_levels(self.sigmas, sigmas):
                wrong.append("the noise levels are others")
        return wrong

    def at(self, sigmas) -> Profile:
        """The profile on other noise levels, interpolated between its own (linearly in sigma, which keeps the
        Gram matrix of features interpolated alike); says so in `resampled`.

        ValueError where they leave the recorded range or lie much closer together than the recorded ones, see
        `DENSEST`."""
        sigmas = tuple(float(s) for s in sigmas)
        if len(sigmas) < 2:
            raise ValueError("sigmas must hold at least two noise levels.")
        if not self.differences({}, sigmas):
            return self
        if any(later > earlier for earlier, later in zip(sigmas, sigmas[1:])):
            raise ValueError("Sigmas must not rise from one step to the next.")
        own, span = self.sigmas[:-1], max(map(abs, self.sigmas))
        if not all(min(self.sigmas) - 0.02 * span <= s <= max(self.sigmas) + 0.02 * span for s in sigmas):
            raise ValueError(
                f"The noise levels, {min(sigmas):.4g} to {max(sigmas):.4g}, go beyond those of the "
                f"profile, {min(self.sigmas):.4g} to "
                f"{max(self.sigmas):.4g}; record one with this scheduler."
            )
        recorded = sum(min(sigmas) - 1e-6 * span <= s <= max(sigmas) + 1e-6 * span for s in own)
        if len(sigmas) - 1 > DENSEST * recorded:
            raise ValueError(
                f"the profile has {recorded} recorded steps where the run has {len(sigmas) - 1}, too few "
                "to plan from."
            )
        rows = torch.zeros(len(sigmas) - 1, len(own), dtype=torch.float64)
        for i, s in enumerate(sigmas[:-1]):
            j = next((j for j, o in enumerate(own) if o <= s), len(own) - 1)
            if j == 0 or own[j] > s or own[j - 1] == own[j]:
                rows[i, j] = 1.0
            else:
                share = (s - own[j]) / (own[j - 1] - own[j])
                rows[i, j - 1], rows[i, j] = share, 1 - share
        modules = {name: rows @ gram @ rows.T for name, gram in self.modules.items()}
        both = torch.block_diag(rows, rows, torch.ones(1, 1, dtype=torch.float64))
        path = None if self.path is None else both @ self.path @ both.T
        clusters = self.clusters and replace(self.clusters, grams=rows @ self.clusters.grams @ rows.T)
        return Profile(
            rows @ self.grams @ rows.T,
            sigmas,
            self.identity,
            self.resampled or self.steps,
            modules,
            path,
            clusters,
            prompts=self.prompts,
        )

    def save(self, path: Path) -> None:
        """Writes the file; FileExistsError rather than overwriting one."""
        if Path(path).exists():
            raise FileExistsError(f"{Path(path).name} exists already; choose another name or delete it.")
        self._write(path)

    def add_to(self, path: Path) -> Profile:
        """Adds the samples to a file, which need not exist yet, and gives the whole.

        ValueError, and an untouched file, where it holds another kind of run; OSError where it cannot be
        written."""
        path = Path(path)
        whole = Profile.load(path).merged(self) if path.exists() else self
        beside = path.with_name(f"{path.name}.{uuid4().hex}.new")  # two runs may write at once
        try:
            whole._write(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return whole

    def _write(self, path: Path) -> None:
        head = {
            "format": FORMAT,
            "kind": KIND,
            "sigmas": list(self.sigmas),
            "identity": dict(self.identity),
            "resampled": self.resampled,
            "modules": list(self.modules),
            "prompts": list(self.prompts),
        }
        tensors = {"grams": self.grams, **{f"grams/{name}": gram for name, gram in self.modules.items()}}
        # Single precision tells differences apart down to 3e-4 of what is compared, enough for these and half
        # of the file.
        clusters = (
            {}
            if self.clusters is None
            else {"clusters": self.clusters.grams.float(), "labels": self.clusters.labels}
        )
        more = {"path": self.path, "tokens": self.tokens, **clusters}
        tensors.update(
            {name: t.float() if name in SINGLE else t for name, t in more.items() if t is not None}
        )
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                path,
                metadata={"profile": json.dumps(head, allow_nan=False)},
            )
        except SafetensorError as error:
            raise OSError(f"{Path(path).name} could not be written: {error}") from None

    @staticmethod
    def identity_of(path: Path) -> dict:
        """What a file holds for, without its matrices; ValueError in one sentence where it is no profile."""
        with _opened(path) as (_, head):
            return head["identity"]

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Reads a file; ValueError in one sentence where it is no profile."""
        name = Path(path).name
        with _opened(path) as (file, head):
            try:
                names = [n for n in file.keys() if n == "grams" or n.startswith("grams/")]  # noqa: SIM118 (a file, not a dict)
                grams = {n: file.get_tensor(n) for n in names[: MAX_NAMES + 1]}
                more = {n: file.get_tensor(n) for n in (*SINGLE, "labels") if n in file.keys()}  # noqa: SIM118
            except (SafetensorError, ValueError, OSError) as error:
                raise ValueError(f"{name} is not a profile: {type(error).__name__}.") from None
        if "grams" not in grams:
            raise ValueError(f"{name} is not a profile.")
        sigmas, identity = head["sigmas"], head["identity"]
        resampled, order = head.get("resampled"), head.get("modules", [])
        known = isinstance(order, list) and all(isinstance(n, str) for n in order)
        if not known or {f"grams/{n}" for n in order} != {*grams} - {"grams"}:
            raise ValueError(f"{name} does not say in which order its modules run.")
        grams, more = (
            {n: t if t.is_complex() or n == "labels" else t.to(torch.float64) for n, t in own.items()}
            for own in (grams, more)
        )
        prompts = head.get("prompts", [])
        if not isinstance(prompts, list) or ("labels" in more) != ("clusters" in more):
            raise ValueError(f"{name} is not a profile: a part is missing.")
        try:
            return cls(
                grams["grams"],
                tuple(map(float, sigmas)),
                identity,
                resampled if isinstance(resampled, int) else None,
                {n: grams[f"grams/{n}"] for n in order},
                more.get("path"),
                Clusters(more["labels"], more["clusters"]) if "labels" in more else None,
                more.get("tokens"),
                tuple(prompts),
            )
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name} is not a profile: {str(error).rstrip('.')}.") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict]]:
    """The file and its checked head: noise levels and identity. ValueError in one sentence where it is no
    profile."""
    name = Path(path).name
    if not Path(path).is_file():
        raise ValueError(f"{name} is not there.")
    if Path(path).stat().st_size > LARGEST_FILE:
        raise ValueError(f"{name} is too large for a profile.")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, "pt"))
            head = json.loads((file.metadata() or {}).get("profile", "null"))
        except (SafetensorError, ValueError, OSError, RecursionError) as error:
            raise ValueError(f"{name} is not a profile: {type(error).__name__}.") from None
        if not isinstance(head, dict) or head.get("kind") != KIND:
            raise ValueError(f"{name} is not a profile.")
        if head.get("format") != FORMAT:
            raise ValueError(f"{name} was written by another version of the pack.")
        sigmas, identity = head.get("sigmas"), head.get("identity")
        if not isinstance(sigmas, list) or not all(
            isinstance(s, (int, float)) and not isinstance(s, bool) for s in sigmas
        ):
            raise ValueError(f"{name} has no noise levels.")
        if not isinstance(identity, dict) or not all(
            isinstance(v, (str, int, float, list)) for v in identity.values()
        ):
            raise ValueError(f"{name} does not say what it holds for.")
        yield file, head


def _together(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """What is there of both."""
    found = [t for t in (one, other) if t is not None]
    return torch.cat(found) if found else None


def _check_clusters(clusters: Clusters, steps: int) -> None:
    labels, grams = clusters.labels, clusters.grams
    if (
        labels.ndim != 1
        or labels.dtype != torch.uint8
        or not 1 <= len(labels) <= MOST_CHANNELS
        or grams.ndim != 4
        or not int(labels.max()) < grams.shape[1] <= MOST_CLUSTERS
    ):
        raise ValueError(
            f"clusters must be labels of at most {MOST_CHANNELS} channels and matrices of at most "
            f"{MOST_CLUSTERS} clusters."
        )
    _check("clusters", grams.flatten(0, 1), steps)


def _check(name: str, gram: torch.Tensor, steps: int) -> None:
    """ValueError where matrices [samples, T, T] are not inner products, up to rounding; anything else would
    make plans of nonsense."""
    if gram.ndim != 3 or gram.shape[0] < 1 or gram.shape[1:] != (steps, steps):
        raise ValueError(
            f"{name} must be [samples, {steps}, {steps}] for {steps} steps, not {list(gram.shape)}."
        )
    if not gram.is_floating_point() or not torch.isfinite(gram).all():
        raise ValueError(f"{name} must be finite numbers.")
    energy = gram.diagonal(dim1=-2, dim2=-1)
    limit = (energy[..., :, None] * energy[..., None, :]).clamp_min(0).sqrt() * (1 + 1e-3) + 1e-9
    even = torch.allclose(gram, gram.mT, atol=1e-6)
    if not even or (energy < 0).any() or (energy > 1e9).any() or (gram.abs() > limit).any():
        raise ValueError(f"{name} must hold inner products of features.")


def fingerprint(model: torch.nn.Module, originals: Mapping[str, torch.Tensor] | None = None) -> str:
    """What tells a model from others: its class, and a hash of the shapes of its matrices and of some of
    their signs.

    originals: by name, weights that a host has put something else in place of, a LoRA's sum for one; blocks
        may be compiled. No precision changes these; vectors are left out, whose names differ between versions
        of a host."""
    plain = ((name.replace("_orig_mod.", ""), w) for name, w in model.named_parameters() if w.ndim > 1)
    digest, named = hashlib.sha256(), sorted(plain, key=lambda pair: pair[0])
    for i, (name, weight) in enumerate(named):
        weight = (originals or {}).get(name, weight)
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if i % max(1, len(named) // 16) == 0:
            digest.update(
                bytes(weight.detach().flatten()[:256].float().signbit().tolist())
            )  # of what becomes -0 in float8 too
    return f"{type(model).__name__} {digest.hexdigest()[:16]}"
