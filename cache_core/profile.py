"""What is learned about a model once: inner products of its final hidden states, and of its modules' outputs, along uncached runs.

A forecast is a weighted sum of snapshots, so every error that it can make is a quadratic form of these products. A profile holds them per
sample, some kilobytes each, and says which runs it holds for; no feature is kept. Files are safetensors with JSON metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .history import Node, Site
from .masks import MAX_NAMES
from .schedule import MAX_STEPS
from .table import same_levels

FORMAT, KIND = 1, "cache_profile"
IDENTITY = ("model", "level", "sampler", "guidance", "resolution")
"""What a profile holds for, beside its noise levels."""
LARGEST_FILE = 1 << 30
DENSEST = 1.5
"""Steps that may be planned per recorded one: between recorded steps features count as lines, which are forecast without error."""


@dataclass(frozen=True)
class Profile:
    """Gram matrices [samples, T, T], float64, of features at the T steps of a run, each divided by the mean energy of its own sample.

    sigmas: the T + 1 noise levels. identity: texts and numbers by the names of `IDENTITY`. resampled: from how many steps, where the
    profile was adapted to another step count, else None. modules: the same matrices of module outputs before their gates, with samples of
    their own, by the names of `masks` in running order; most profiles have none. Raises ValueError naming the field.
    """

    grams: torch.Tensor
    sigmas: tuple[float, ...]
    identity: Mapping = field(default_factory=dict)
    resampled: int | None = None
    modules: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        steps = len(self.sigmas) - 1
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"sigmas must hold 2 to {MAX_STEPS + 1} noise levels.")
        if not all(map(math.isfinite, self.sigmas)):
            raise ValueError("sigmas must be finite numbers.")
        if len(self.modules) > MAX_NAMES or not all(isinstance(name, str) and len(name) <= 100 for name in self.modules):
            raise ValueError(f"modules must be at most {MAX_NAMES} names and matrices.")
        for name, gram in (("grams", self.grams), *((f"modules.{name}", gram) for name, gram in self.modules.items())):
            _check(name, gram, steps)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def merged(self, other: Profile) -> Profile:
        """Both profiles' samples; ValueError says what differs where they are not of the same kind of run."""
        wrong = self.differences(other.identity, other.sigmas)
        if wrong:
            raise ValueError(f"profiles of different runs cannot be merged: {wrong[0]}.")
        names = {**self.modules, **other.modules}
        modules = {name: torch.cat([p.modules[name] for p in (self, other) if name in p.modules]) for name in names}
        return Profile(torch.cat([self.grams, other.grams]), self.sigmas, self.identity, self.resampled, modules)

    def differences(self, identity: Mapping, sigmas=None) -> list[str]:
        """What of a run is not as in the profile, in words; empty where it fits. Fields the run does not tell are not compared."""
        wrong = [f"{name} is {identity[name]}, the profile's {self.identity[name]}" for name in IDENTITY
                 if name in identity and name in self.identity and identity[name] != self.identity[name]]
        if sigmas is not None:
            if len(sigmas) != len(self.sigmas):
                wrong.append(f"the run has {len(sigmas) - 1} steps, the profile {self.steps}")
            elif not same_levels(self.sigmas, sigmas):
                wrong.append("the noise levels are others")
        return wrong

    def at(self, sigmas) -> Profile:
        """The profile on other noise levels, interpolated between its own (linearly in sigma, which keeps the Gram matrix of features
        interpolated alike); says so in `resampled`.

        ValueError where they leave the recorded range or lie much closer together than the recorded ones, see `DENSEST`.
        """
        sigmas = tuple(float(s) for s in sigmas)
        if len(sigmas) < 2:
            raise ValueError("sigmas must hold at least two noise levels.")
        if not self.differences({}, sigmas):
            return self
        own, span = self.sigmas[:-1], max(map(abs, self.sigmas))
        if not all(min(self.sigmas) - 0.02 * span <= s <= max(self.sigmas) + 0.02 * span for s in sigmas):
            raise ValueError("the run's noise levels go beyond those of the profile.")
        recorded = sum(min(sigmas) - 1e-6 * span <= s <= max(sigmas) + 1e-6 * span for s in own)
        if len(sigmas) - 1 > DENSEST * recorded:
            raise ValueError(f"the profile has {recorded} recorded steps where the run has {len(sigmas) - 1}, too few to plan from.")
        rows = torch.zeros(len(sigmas) - 1, len(own), dtype=torch.float64)
        for i, s in enumerate(sigmas[:-1]):
            j = next((j for j, o in enumerate(own) if o <= s), len(own) - 1)
            if j == 0 or own[j] > s or own[j - 1] == own[j]:
                rows[i, j] = 1.0
            else:
                share = (s - own[j]) / (own[j - 1] - own[j])
                rows[i, j - 1], rows[i, j] = share, 1 - share
        modules = {name: rows @ gram @ rows.T for name, gram in self.modules.items()}
        return Profile(rows @ self.grams @ rows.T, sigmas, self.identity, self.resampled or self.steps, modules)

    def save(self, path: Path) -> None:
        """Writes the file; FileExistsError rather than overwriting one."""
        if Path(path).exists():
            raise FileExistsError(f"{Path(path).name} exists already; choose another name or delete it.")
        self._write(path)

    def add_to(self, path: Path) -> Profile:
        """Adds the samples to a file, which need not exist yet, and gives the whole.

        ValueError, and an untouched file, where it holds another kind of run; OSError where it cannot be written.
        """
        path = Path(path)
        whole = Profile.load(path).merged(self) if path.exists() else self
        beside = path.with_name(path.name + ".new")
        whole._write(beside)
        beside.replace(path)
        return whole

    def _write(self, path: Path) -> None:
        head = {"format": FORMAT, "kind": KIND, "sigmas": list(self.sigmas), "identity": dict(self.identity), "resampled": self.resampled,
                "modules": list(self.modules)}
        tensors = {"grams": self.grams, **{f"grams/{name}": gram for name, gram in self.modules.items()}}
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path,
                      metadata={"profile": json.dumps(head, allow_nan=False)})
        except SafetensorError as error:
            raise OSError(f"{Path(path).name} could not be written: {error}") from None

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Reads a file; ValueError in one sentence where it is no profile."""
        name = Path(path).name
        if not Path(path).is_file():
            raise ValueError(f"{name} is not there.")
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"{name} is too large for a profile.")
        try:
            with safe_open(path, "pt") as file:
                head = json.loads((file.metadata() or {}).get("profile", "null"))
                names = [n for n in file.keys() if n == "grams" or n.startswith("grams/")]  # noqa: SIM118 (a file, not a dict)
                grams = {n: file.get_tensor(n) for n in names[:MAX_NAMES + 1]}
        except (SafetensorError, ValueError, OSError, RecursionError) as error:
            raise ValueError(f"{name} is not a profile: {type(error).__name__}.") from None
        if not isinstance(head, dict) or head.get("kind") != KIND or "grams" not in grams:
            raise ValueError(f"{name} is not a profile.")
        if head.get("format") != FORMAT:
            raise ValueError(f"{name} was written by another version of the pack.")
        sigmas, identity = head.get("sigmas"), head.get("identity")
        if not isinstance(sigmas, list) or not all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in sigmas):
            raise ValueError(f"{name} has no noise levels.")
        if not isinstance(identity, dict) or not all(isinstance(v, (str, int, float, list)) for v in identity.values()):
            raise ValueError(f"{name} does not say what it holds for.")
        resampled, order = head.get("resampled"), head.get("modules", [])
        known = isinstance(order, list) and all(isinstance(n, str) for n in order)
        if not known or {f"grams/{n}" for n in order} != {*grams} - {"grams"}:
            raise ValueError(f"{name} does not say in which order its modules run.")
        grams = {n: gram if gram.is_complex() else gram.to(torch.float64) for n, gram in grams.items()}
        try:
            return cls(grams["grams"], tuple(map(float, sigmas)), identity, resampled if isinstance(resampled, int) else None,
                       {n: grams[f"grams/{n}"] for n in order})
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name} is not a profile: {str(error).rstrip('.')}.") from None


def _check(name: str, gram: torch.Tensor, steps: int) -> None:
    """ValueError where matrices [samples, T, T] are not inner products, up to rounding; anything else would make plans of nonsense."""
    if gram.ndim != 3 or gram.shape[0] < 1 or gram.shape[1:] != (steps, steps):
        raise ValueError(f"{name} must be [samples, {steps}, {steps}] for {steps} steps, not {list(gram.shape)}.")
    if not gram.is_floating_point() or not torch.isfinite(gram).all():
        raise ValueError(f"{name} must be finite numbers.")
    energy = gram.diagonal(dim1=-2, dim2=-1)
    limit = (energy[..., :, None] * energy[..., None, :]).clamp_min(0).sqrt() * (1 + 1e-3) + 1e-9
    even = torch.allclose(gram, gram.mT, atol=1e-6)
    if not even or (energy < 0).any() or (energy > 1e9).any() or (gram.abs() > limit).any():
        raise ValueError(f"{name} must hold inner products of features.")


def fingerprint(model: torch.nn.Module) -> str:
    """What tells a model from others: its class, and a hash of the shapes of its matrices and of some of their signs.

    No precision changes these; vectors are left out, whose names differ between versions of a host.
    """
    digest, named = hashlib.sha256(), sorted((name, w) for name, w in model.named_parameters() if w.ndim > 1)
    for i, (name, weight) in enumerate(named):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if i % max(1, len(named) // 16) == 0:
            digest.update(bytes(weight.detach().flatten()[:256].float().signbit().tolist()))  # of what becomes -0 in float8 too
    return f"{type(model).__name__} {digest.hexdigest()[:16]}"


class Recorder:
    """A forecast that forecasts nothing: it watches full steps and keeps the products of what it sees. One per run.

    It holds all features of a run until the run ends: steps times the size of a site. tokens: how many rows of every module's output are
    kept beside them, 0 for none; `modules` is then the forecast that watches the modules.
    """

    name, needs, probe, gain = "recorder", MAX_STEPS, None, 1.0
    watches = True
    """Full steps are looked at though nothing is skipped."""

    def __init__(self, tokens: int = 0):
        self._rows: dict[int, tuple[Site, list[torch.Tensor]]] = {}
        self._changed = False
        self.modules = ModuleRecorder(tokens) if tokens else None

    def over_run(self, first: Node, last: Node) -> Recorder:
        return self

    def learn(self, site: Site, truth: torch.Tensor, node: Node) -> None:
        """Products [b, 1 + kept] of the truth with itself and with what is kept, newest first."""
        if any(s.shape != truth.shape for s in site.snapshots):
            self._changed = True
            return
        rows = self._rows.setdefault(id(site), (site, []))[1]
        if not rows:
            rows += [self._products(s, site.snapshots[i:]) for i, s in reversed(list(enumerate(site.snapshots)))]
        rows.append(self._products(truth, [truth, *site.snapshots]))

    @staticmethod
    def _products(x: torch.Tensor, others) -> torch.Tensor:
        own = x.flatten(1).double()
        return torch.stack([torch.linalg.vecdot(own, o.flatten(1).double()) for o in others], -1).cpu()

    def forecast(self, site: Site, node: Node, out=None) -> torch.Tensor:
        return site.combine([1.0], out)

    def to_dict(self) -> dict:
        raise ValueError("a recorder is no part of a recipe.")

    def grams(self) -> torch.Tensor:
        """Gram matrices [samples, T, T] of all sites seen, oldest step first, each by its mean energy. ValueError before any run."""
        if not self._rows:
            raise ValueError("nothing was recorded: sample at least two full steps.")
        if self._changed:
            raise ValueError("the size of the features changed during the run.")
        made = []
        for _, rows in self._rows.values():
            gram = torch.zeros(rows[0].shape[0], len(rows), len(rows), dtype=torch.float64)
            for t, row in enumerate(rows):
                gram[:, t, : t + 1] = row.flip(-1)
            gram = gram + gram.tril(-1).mT
            made.append(_scaled(gram))
        return _joined(made)


def _scaled(gram: torch.Tensor) -> torch.Tensor:
    """Gram matrices [b,T,T], each by its mean energy."""
    return gram / gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None].clamp_min(1e-300)


def _joined(grams: list[torch.Tensor]) -> torch.Tensor:
    if len({len(g[0]) for g in grams}) > 1:
        raise ValueError("branches of different lengths were recorded; use a sampler of one evaluation per step and no time ranges.")
    return torch.cat(grams)


class ModuleRecorder:
    """Watches module outputs on full steps, as `Recorder` does the final hidden state. One per run.

    Of every module it keeps the same `tokens` rows, chosen at random, at every step: steps * tokens * width values in the model's own
    precision, on the CPU, and the newest output.
    """

    name, needs, probe, gain = "module recorder", 1, None, 1.0
    watches = True

    def __init__(self, tokens: int, seed: int = 0):
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"tokens must be a whole number of at least 1, not {tokens!r}.")
        self.tokens, self.seed = tokens, seed
        self._kept: dict[int, tuple[Site, int, list[torch.Tensor]]] = {}
        self._changed = False

    def over_run(self, first: Node, last: Node) -> ModuleRecorder:
        return self

    def learn(self, site: Site, truth: torch.Tensor, node: Node) -> None:
        _, count, rows = self._kept.setdefault(id(site), (site, truth.shape[1], []))
        self._changed |= count != truth.shape[1]
        if not rows:
            rows.append(self._some(site.snapshots[0]))
        rows.append(self._some(truth))

    def _some(self, x: torch.Tensor) -> torch.Tensor:
        chosen = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(self.seed))[:self.tokens]
        return x.index_select(1, chosen.sort().values.to(x.device)).cpu()

    def forecast(self, site: Site, node: Node, out=None) -> torch.Tensor:
        return site.combine([1.0], out)

    def grams(self) -> dict[str, torch.Tensor]:
        """Gram matrices [samples, T, T] by module in running order, as `Recorder.grams` gives them.

        The rows stand for all tokens of their stream; what text and image add to a module's products is summed. ValueError before any run.
        """
        if not self._kept:
            raise ValueError("nothing was recorded: sample at least two full steps.")
        if self._changed:
            raise ValueError("the size of the features changed during the run.")
        parts: dict[tuple[str, int], torch.Tensor] = {}
        for site, count, rows in self._kept.values():
            x = torch.stack(rows, 1).double().flatten(2)  # [b, T, rows * width]
            gram, key = x @ x.mT * (count / rows[0].shape[1]), (_module(site.name), id(site.evidence))
            parts[key] = parts[key] + gram if key in parts else gram
        names = dict.fromkeys(name for name, _ in parts)
        return {name: _joined([_scaled(gram) for (own, _), gram in parts.items() if own == name]) for name in names}


def _module(site: tuple) -> str:
    """Name of a site's module as in `masks`: streams of text and image are one, and a fused block is a whole."""
    kind, index, part = site
    part = part.removeprefix("img_").removeprefix("txt_")
    return f"{kind}.{index}" if part == "out" else f"{kind}.{index}.{part}"
