"""Where profiles are kept: the folder models/cache_profiles and the pack's own, what may be a file's name,
and which file fits a run."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ...cache_core.calibration.planner import Plan, plan_for_speedup
from ...cache_core.calibration.profile import Profile
from ...cache_core.calibration.recorder import Recorder
from ...cache_core.config import CacheConfig
from ...cache_core.recipes import parts_of_plan
from .file_lock import locked

log = logging.getLogger("dual_cache")
PROFILES = "cache_profiles"
OWN_PROFILES = Path(__file__).resolve().parents[2] / "demo" / "weights"
MOST_AREA = 2.5
"""How many times larger or smaller than recorded a picture may be to be planned for by itself."""
MOST_GUIDANCE = 1.5
"""How many times higher than recorded guidance may be: twice as high broke pictures of the embedded model
(docs/profiles.md)."""
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}
"""Names that are no files on Windows."""

MOST_KEPT = 3
"""Parsed files that stay in memory, each of up to a gigabyte."""
_kept: dict[Path, tuple[tuple[int, int], Profile | str]] = {}
"""By path, the version of the file and what it held, the last one read last."""


def folders() -> list[Path]:
    """Where profiles are looked for: the models folder, where new ones are saved, and the pack's own."""
    import folder_paths

    if PROFILES not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(PROFILES, os.path.join(folder_paths.models_dir, PROFILES))
    return [*map(Path, folder_paths.get_folder_paths(PROFILES)), OWN_PROFILES]


def names() -> list[str]:
    """File names of all profiles, those of the pack last."""
    patterns = [*["*.safetensors"] * (len(folders()) - 1), "*.profile.safetensors"]
    return list(
        dict.fromkeys(
            path.name
            for folder, pattern in zip(folders(), patterns)
            for path in sorted(folder.glob(pattern))
            if path.is_file()
        )
    )


def path_of(name: str, new: bool = False) -> Path:
    """The file of a profile by its name, or where a new one goes. ValueError where the name is more than the
    name of a file."""
    name = name if name.endswith(".safetensors") else f"{name}.profile.safetensors"
    if not re.fullmatch(r"[\w][\w .()+-]{0,150}", name) or name.split(".")[0].upper() in DEVICES:
        raise ValueError("name must be the name of a file: letters, digits, blanks, dots and dashes.")
    found = [
        folder / name
        for folder in folders()
        if (folder / name).is_file() and not (folder / name).is_symlink()
    ]
    if new:
        return folders()[0] / name
    if not found:
        raise ValueError(f"There is no profile named {name}; record one with Profile Model.")
    return found[0]


@dataclass(frozen=True)
class Recording:
    """What a run is recorded for: the file to add to, and what beside the final hidden state.

    tokens, clusters: as of `Recorder`. prompt: the mark of the run in the file. strict: a run that does not
        fit the file raises ValueError, before it begins where that is known by then; else its picture comes
        first, and a sentence says what became of the recording."""

    path: Path
    tokens: int = 0
    clusters: int = 0
    prompt: str = ""
    strict: bool = False

    def recorder(self, levels: list[float], identity: dict, unfit: str | None = None) -> Recorder:
        """For a run of these noise levels; the file's clusters stay what they are.

        unfit: why the run cannot be recorded at all, or None."""
        labels = None
        if unfit:
            if self.strict:
                raise ValueError(f"This run was not added to {self.path.name}: {unfit}.")
            recorder = Recorder()
            recorder.abandon(unfit)
            return recorder
        if self.path.is_file():
            try:
                known = read(self.path)
                wrong = known.differences(identity, levels)
                if wrong and self.strict:
                    raise ValueError(
                        f"{self.path.name} was recorded otherwise, and nothing is added to it: "
                        f"{'; '.join(wrong)}."
                    )
                labels = known.clusters.labels if self.clusters and known.clusters else None
            except ValueError:
                if self.strict:
                    raise
        return Recorder(self.tokens, 0 if labels is not None else self.clusters, labels)

    def keep(self, recorder: Recorder, levels: list[float], identity: dict) -> str:
        """Adds a recorded run to the file; what became of it, in a sentence."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            recorded = recorder.profile(levels, identity, self.prompt)
            with locked(self.path):  # another server may add to it at the same time
                whole = recorded.add_to(self.path)
        except (ValueError, OSError) as error:
            said = f"This run was not added to {self.path.name}: {str(error).rstrip('.')}."
            if self.strict:
                raise ValueError(said) from None
            return said
        lacking = " Its modules are out of reach." if self.tokens and not whole.modules else ""
        return (
            f"{self.path.name} now holds {len(whole.grams)} recorded runs; with guidance, a picture "
            f"counts twice.{lacking}"
        )


def read(path: Path) -> Profile:
    """The profile of a file, parsed again when it has changed or others were read since. ValueError in one
    sentence where it is none."""
    version, (known, found) = _version(path), _kept.pop(path, (None, ""))
    if known != version:
        found = _parsed(path)
    _kept[path] = version, found
    for oldest in list(_kept)[:-MOST_KEPT]:
        _kept.pop(oldest, None)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _version(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        raise ValueError(f"{path.name} is not there.") from None
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=256)
def _model_of(path: Path, changed: int, size: int) -> str | None:
    """The model of a file's profile, from its head alone: files of other models are not parsed."""
    return Profile.identity_of(path).get("model")


def _parsed(path: Path) -> Profile | str:
    """The profile, or what is wrong with the file."""
    try:
        return Profile.load(path)
    except ValueError as error:
        return str(error)


def planned(
    settings: CacheConfig, identity: dict, levels: list[float], unfit: str | None = None
) -> tuple[CacheConfig, str]:
    """The settings with a plan from the profile that fits a run best, and a sentence on it; as they are where
    none fits.

    unfit: why no profile can fit the run, or None."""
    if unfit:
        return settings, f"No profile was used, so the preset's own plan runs: {unfit}."
    fitting, refused = [], []
    for name in names():
        try:
            path = path_of(name)
            if _model_of(path, *_version(path)) != identity["model"]:
                continue
            profile = read(path)
            wrong = _unfit(profile, identity)
            if wrong:
                raise ValueError(wrong)
            made = _plan(path, path.stat().st_mtime_ns, tuple(levels), settings.speedup)
            fitting.append((_distance(profile, identity, levels), name, profile, made))
        except (ValueError, OSError) as error:
            log.info("Dual Cache: %s does not serve this run: %s", name, error)
            refused.append((name, str(error).rstrip(".")))
    if not fitting:
        ours = [f"{name}: {why}" for name, why in refused[:3]] + [f"and {len(refused) - 3} more"] * (
            len(refused) > 3
        )
        return settings, "No profile fits this run, so the preset's own plan runs." + (
            f" {'; '.join(ours)}." if ours else " Profile Model records one."
        )
    _, name, profile, made = min(fitting, key=lambda found: found[:2])
    wrong = profile.differences(identity, levels)
    other = f" It was recorded otherwise: {'; '.join(wrong)}." if wrong else ""
    return replace(settings, **parts_of_plan(made.schedule)), f"Planned from {name}.{other}"


@lru_cache(maxsize=64)
def _plan(path: Path, changed: int, levels: tuple[float, ...], speedup: float) -> Plan:
    """The plan from a file as it was when it changed last; a second of work that repeats with every run."""
    return plan_for_speedup(read(path), levels, speedup)


def _unfit(profile: Profile, identity: dict) -> str | None:
    """Why a profile of the same model tells nothing of a run, or None."""
    if profile.identity.get("sampler", identity["sampler"]) != identity["sampler"]:
        return f"it was recorded with {profile.identity['sampler']}, the run uses {identity['sampler']}"
    guidance = profile.identity.get("guidance")
    if isinstance(guidance, (int, float)) and identity["guidance"] > MOST_GUIDANCE * guidance:
        return (
            f"it was recorded at guidance {guidance:g}, the run has {identity['guidance']:g}, which "
            "magnifies errors"
        )
    ratio = _area(identity) / max(1, _area(profile.identity) or _area(identity))
    if not 1 / MOST_AREA <= ratio <= MOST_AREA:
        return (
            f"it was recorded at another size, {profile.identity['resolution']} where the run has "
            f"{identity['resolution']}"
        )
    return None


def _area(identity: Mapping) -> int:
    size = identity.get("resolution")
    return (
        math.prod(size) if isinstance(size, list) and all(isinstance(n, int) and n > 0 for n in size) else 0
    )


def _distance(profile: Profile, identity: dict, levels: list[float]) -> tuple:
    """How far a run is from what was recorded: guidance first, then size, then steps."""
    guidance = profile.identity.get("guidance")
    apart = abs(guidance - identity["guidance"]) if isinstance(guidance, (int, float)) else math.inf
    return apart, abs(_area(profile.identity) - _area(identity)), abs(profile.steps - len(levels) + 1)
