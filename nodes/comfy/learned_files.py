"""Where learned plans and recorded runs are kept, and what a file of a recorded run holds.

Plans stand in the folder models/cache_profiles, as NAME.plans.json; recorded runs in a folder NAME.runs
beside them, one safetensors file each: states, velocities, and the conditioning that fitting evaluates the
model with."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...cache_core.learned.plans import Plans
from ...cache_core.learned.reference import Trajectory
from .profile_files import DEVICES, folders

log = logging.getLogger("dual_cache")
SUFFIX, RUNS = ".plans.json", ".runs"
FORMAT, KIND = 1, "recorded_run"
MOST_RUNS = 64
SIDES = ("positive", "negative")
PLAIN = (bool, int, float, str, type(None))


def names() -> list[str]:
    """File names of all learned plans, those of the pack last."""
    return list(dict.fromkeys(p.name for f in folders() for p in sorted(f.glob(f"*{SUFFIX}")) if p.is_file()))


def _base(name: str) -> str:
    """A name without its ending. ValueError where it is more than the name of a file."""
    name = name.removesuffix(SUFFIX)
    if not re.fullmatch(r"[\w][\w .()+-]{0,150}", name) or name.split(".")[0].upper() in DEVICES:
        raise ValueError("name must be the name of a file: letters, digits, blanks, dots and dashes.")
    return name


def path_of(name: str, new: bool = False) -> Path:
    """The file of learned plans by its name, or where a new one goes. ValueError where there is none."""
    file = _base(name) + SUFFIX
    if new:
        return folders()[0] / file
    for folder in folders():
        if (folder / file).is_file() and not (folder / file).is_symlink():
            return folder / file
    raise ValueError(
        f"There are no learned plans named {file}; record runs with Record and fit them with Fit Plan."
    )


def read(name: str) -> Plans:
    """The learned plans of a name. ValueError in one sentence."""
    return Plans.load(path_of(name))


def runs_folder(name: str) -> Path:
    """Where recorded runs of a name are kept."""
    return folders()[0] / (_base(name) + RUNS)


def runs_of(name: str) -> list[Path]:
    """Files of the recorded runs of a name, the oldest first."""
    folder = runs_folder(name)
    return (
        sorted(folder.glob("*.safetensors"), key=lambda p: (p.stat().st_mtime_ns, p.name))
        if folder.is_dir()
        else []
    )


@dataclass(frozen=True)
class Recorded:
    """One recorded run.

    trajectory: of the pictures of its batch. identity: what plans from it hold for. guidance:
        classifier-free. sampler: its name, as in `samplers.SAMPLERS` where it is one of them.
    conds: by side, entries of ComfyUI's converted conditioning. latent: what was sampled from, [B, ...], or
        None for an empty one. seed: of the run."""

    trajectory: Trajectory
    identity: dict
    guidance: float
    sampler: str
    conds: dict[str, list[dict]]
    latent: torch.Tensor | None
    seed: int

    def kind(self) -> dict:
        """What runs that are learned from together have in common."""
        return {
            **{k: v for k, v in self.identity.items() if k != "area"},
            "guidance": self.guidance,
            "sampler": self.sampler,
        }


class _Stored(Sequence):
    """Tensors of a file, read when they are asked for."""

    def __init__(self, path: Path, name: str, count: int):
        self._path, self._name, self._count = path, name, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> torch.Tensor:
        i = range(self._count)[i]
        with safe_open(self._path, "pt") as file:
            return file.get_slice(self._name)[i].float()


def portable(conds: dict) -> dict[str, list[dict]]:
    """Converted conditioning as far as a file can hold it. ValueError names what it cannot."""
    if set(conds) - set(SIDES) or "positive" not in conds:
        raise ValueError("its guider has other sides than positive and negative")
    made = {}
    for side, entries in conds.items():
        made[side] = []
        for entry in entries:
            own = {k: v for k, v in entry.items() if k not in ("uuid", "model_conds") and v is not None}
            for key, value in own.items():
                parts = value if isinstance(value, (list, tuple)) else [value]
                if not all(isinstance(v, (torch.Tensor, *PLAIN)) for v in parts):
                    raise ValueError(f"its conditioning holds {key}, which cannot be kept in a file")
            made[side].append(own)
    return made


def save(name: str, run: Recorded) -> Path:
    """Adds a recorded run to those of a name; the file is whole or not there. OSError where it cannot be
    written."""
    tensors: dict[str, torch.Tensor] = {
        "states": torch.stack([s.float() for s in run.trajectory.states]),
        # Their differences from what follows from the states are all that a coarser number loses.
        "velocities": torch.stack([v.half() for v in run.trajectory.velocities]),
    }
    head = {
        "format": FORMAT,
        "kind": KIND,
        "sigmas": list(run.trajectory.sigmas),
        "identity": run.identity,
        "guidance": run.guidance,
        "sampler": run.sampler,
        "seed": run.seed,
        "conds": {
            side: [_packed(e, f"{side}.{i}", tensors) for i, e in enumerate(own)]
            for side, own in run.conds.items()
        },
    }
    if run.latent is not None:
        tensors["latent"] = run.latent.float()
    folder = runs_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid4().hex}.safetensors"
    beside = path.with_suffix(".new")
    try:
        save_file(
            {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()},
            beside,
            {"run": json.dumps(head)},
        )
        beside.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path.name} could not be written: {error}") from None
    finally:
        beside.unlink(missing_ok=True)
    return path


def _packed(entry: dict, at: str, tensors: dict[str, torch.Tensor]) -> dict:
    """An entry with its tensors put aside."""

    def pack(value, place):
        if isinstance(value, torch.Tensor):
            tensors[place] = value
            return {"tensor": place}
        if isinstance(value, (list, tuple)):
            return {"list": [pack(v, f"{place}.{i}") for i, v in enumerate(value)]}
        return {"value": value}

    return {key: pack(value, f"{at}.{key}") for key, value in entry.items()}


def load(path: Path) -> Recorded:
    """A recorded run. ValueError in one sentence where the file is none."""
    try:
        with safe_open(path, "pt") as file:
            head = json.loads((file.metadata() or {}).get("run", "null"))
            if not isinstance(head, dict) or head.get("kind") != KIND or head.get("format") != FORMAT:
                raise ValueError("it is of another kind or version")
            sigmas = tuple(map(float, head["sigmas"]))
            conds = {s: [_unpacked(e, file) for e in head["conds"][s]] for s in SIDES if s in head["conds"]}
            known = set(file.keys())
            latent = file.get_tensor("latent") if "latent" in known else None
            shapes = [file.get_slice(n).get_shape() for n in ("states", "velocities")]
        if shapes[0][0] != len(sigmas) or shapes[1][0] != len(sigmas) - 1 or shapes[0][1:] != shapes[1][1:]:
            raise ValueError("its states do not belong to its noise levels")
        trajectory = Trajectory(
            sigmas, _Stored(path, "states", len(sigmas)), _Stored(path, "velocities", len(sigmas) - 1)
        )
        return Recorded(
            trajectory,
            dict(head["identity"]),
            float(head["guidance"]),
            str(head["sampler"]),
            conds,
            latent,
            int(head["seed"]),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = str(error).rstrip(".") if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{path.name} is no recorded run: {why}; delete it.") from None


def _unpacked(entry: dict, file) -> dict:
    def unpack(value):
        if "tensor" in value:
            return file.get_tensor(value["tensor"])
        return [unpack(v) for v in value["list"]] if "list" in value else value["value"]

    return {key: unpack(value) for key, value in entry.items()}
