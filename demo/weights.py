"""The embedded model's files: where they are, how they are written and read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from .autoencoder import FLUX_SCALE, FLUX_SHIFT, Autoencoder
from .flux import Flux

if TYPE_CHECKING:  # at run time the judge is only there in the repository, not in the archive for users
    from .judge import Judge

WEIGHTS = Path(__file__).parent / "weights"
MODEL = "dual_cache_demo.safetensors"
VAE = "dual_cache_demo_vae.safetensors"
JUDGE = "judge.safetensors"
PROFILE = "embedded-30-steps.profile.safetensors"
"""Of 12 runs at 30 steps and guidance 2, by `python -m bench.profile`."""
_TINY = torch.float8_e4m3fn


def _small(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the dtype it is stored in.

    bfloat16 as FLUX.1 itself; the text stream's modulation, and TAESD blocks that are all zero, in float8,
    which keeps the files below 30 MB."""
    if not tensor.is_floating_point() or tensor.numel() == 1:
        return tensor
    if ".txt_mod." in name or not tensor.any():
        return tensor.to(_TINY)
    return tensor.to(torch.float16 if "taesd" in name else torch.bfloat16)


def save_weights(folder: Path, transformer: dict, vae: dict, judge: dict) -> None:
    """Writes the three files of the embedded model into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = {**vae, "vae_scale": torch.tensor(FLUX_SCALE), "vae_shift": torch.tensor(FLUX_SHIFT)}
    for name, tensors in ((MODEL, transformer), (VAE, vae)):
        save_file(
            {k: _small(k, v).contiguous() for k, v in tensors.items()},
            folder / name,
            metadata={"format": "pt"},
        )
    save_file(
        {k: v.half().contiguous() if v.is_floating_point() else v for k, v in judge.items()}, folder / JUDGE
    )


def _load(net: torch.nn.Module, path: Path, skip=()) -> torch.nn.Module:
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is missing; `python -m demo.train` makes it.")
    own = net.state_dict()
    state = {k: v.to(own[k].dtype) for k, v in load_file(path).items() if k not in skip}
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def load_transformer(folder: Path = WEIGHTS) -> Flux:
    """The embedded transformer in float32."""
    return _load(Flux(), folder / MODEL)


def load_autoencoder(folder: Path = WEIGHTS) -> Autoencoder:
    """The embedded autoencoder in float32; its latents are in the model's space."""
    return _load(Autoencoder(), folder / VAE, skip=("vae_scale", "vae_shift"))


def load_judge(folder: Path = WEIGHTS) -> Judge:
    """The classifier that reads shape and colour off a picture."""
    from .judge import Judge

    return _load(Judge(), folder / JUDGE)
