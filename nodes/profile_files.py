"""Where profiles are kept: the folder models/cache_profiles and the pack's own, what may be a file's name, and which file fits a run."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

from ..cache_core.forecasts import forecast
from ..cache_core.planner import plan_for_speedup
from ..cache_core.profile import Profile, Recorder
from ..cache_core.settings import Settings

log = logging.getLogger("dual_cache")
PROFILES = "cache_profiles"
OWN_PROFILES = Path(__file__).resolve().parents[1] / "demo" / "weights"
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}
"""Names that are no files on Windows."""


def folders() -> list[Path]:
    """Where profiles are looked for: the models folder, where new ones are saved, and the pack's own."""
    import folder_paths
    if PROFILES not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(PROFILES, os.path.join(folder_paths.models_dir, PROFILES))
    return [*map(Path, folder_paths.get_folder_paths(PROFILES)), OWN_PROFILES]


def names() -> list[str]:
    """File names of all profiles, those of the pack last."""
    patterns = [*["*.safetensors"] * (len(folders()) - 1), "*.profile.safetensors"]
    return list(dict.fromkeys(path.name for folder, pattern in zip(folders(), patterns) for path in sorted(folder.glob(pattern))
                              if path.is_file()))


def path_of(name: str, new: bool = False) -> Path:
    """The file of a profile by its name, or where a new one goes. ValueError where the name is more than the name of a file."""
    name = name if name.endswith(".safetensors") else f"{name}.profile.safetensors"
    if not re.fullmatch(r"[\w][\w .()+-]{0,150}", name) or name.split(".")[0].upper() in DEVICES:
        raise ValueError("name must be the name of a file: letters, digits, blanks, dots and dashes.")
    found = [folder / name for folder in folders() if (folder / name).is_file() and not (folder / name).is_symlink()]
    if new:
        return folders()[0] / name
    if not found:
        raise ValueError(f"There is no profile named {name}; record one with Profile Model.")
    return found[0]


def keep(recorder: Recorder, levels: list[float], identity: dict, path: Path) -> str:
    """Adds a recorded run to its file; what became of it, in a sentence. The picture is never lost for a profile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = Profile(recorder.grams(), tuple(levels), identity).add_to(path)
    except (ValueError, OSError) as error:
        return f"This run was not added to {path.name}: {str(error).rstrip('.')}."
    return f"{path.name} now holds {len(whole.grams)} samples."


def planned(settings: Settings, identity: dict, levels: list[float]) -> tuple[Settings, str]:
    """The settings with a plan from the profile that fits a run best, and a sentence on it."""
    best = None
    for name in names():
        try:
            profile = Profile.load(path_of(name))
        except ValueError as error:
            log.warning("Dual Cache: %s", error)
            continue
        if profile.identity.get("model") == identity["model"]:
            wrong = profile.differences(identity, levels)
            best = min(best or (wrong, name, profile), (wrong, name, profile), key=lambda found: len(found[0]))
    if best is None:
        return settings, "There is no profile of this model, so the preset's own plan runs. Profile Model records one."
    wrong, name, profile = best
    made = plan_for_speedup(profile, levels, settings.speedup)
    other = f" It was recorded otherwise: {'; '.join(wrong)}." if wrong else ""
    predictor = forecast(json.loads(made.schedule.forecast)) if made.schedule.forecast else settings.predictor
    return replace(settings, schedule=made.schedule, level="final", predictor=predictor), f"Planned from {name}.{other}"
