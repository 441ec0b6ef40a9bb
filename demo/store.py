"""Files of the further embedded models: which tensors are stored how, and reading them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from .training import FLOAT8
from .weights import WEIGHTS

VIDEO = "video.safetensors"
VIDEO_VAE = "video_vae.safetensors"
CLIP_JUDGE = "clip_judge.safetensors"
EMOJI = "emoji.safetensors"
EMOJI_VAE = "emoji_vae.safetensors"
EMOJI_TEXT = "emoji_text.safetensors"
EMOJI_JUDGE = "emoji_judge.safetensors"
EDIT = "edit.safetensors"
SKIP = "skip.safetensors"
NO_SKIP = "no_skip.safetensors"


def is_block_matrix(name: str) -> bool:
    """Whether a parameter is a weight matrix of a block, which the larger models store in float8."""
    return "blocks." in name and name.endswith(".weight") and "norm" not in name


def text_columns(name: str) -> bool:
    """The video model's first text matrix, of which all columns but 64 are zero."""
    return name == "text_embedding.0.weight"


def save_model(
    model: nn.Module,
    path: Path,
    float8: Callable[[str], bool] = lambda name: False,
    dtype: torch.dtype = torch.bfloat16,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a model's state in `dtype`, and in float8 what `float8` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        k: v.detach().cpu().to(FLOAT8 if float8(k) else dtype).contiguous()
        if v.is_floating_point()
        else v.cpu()
        for k, v in model.state_dict().items()
    }
    part = path.with_suffix(".part")
    save_file(state, part, metadata={"format": "pt", **(metadata or {})})
    part.replace(path)


def load_model(net: nn.Module, name: str, command: str, folder: Path = WEIGHTS) -> nn.Module:
    """Reads a model's file into `net`, in float32. Raises FileNotFoundError naming the training command."""
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{name} is missing; `python -m {command}` makes it.")
    own = net.state_dict()
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in load_file(path).items()})
    return net.eval().requires_grad_(False)


def started(net: nn.Module, folder: Path | None, name: str) -> nn.Module:
    """`net` with the weights of a file in `folder`, to train on from; unchanged without a folder."""
    if folder is not None:
        load_model(net, name, "demo.train_...", folder)
    return net.train().requires_grad_(True)


def metadata_of(name: str, folder: Path = WEIGHTS) -> dict[str, str]:
    """The text stored beside a file's tensors."""
    with safe_open(folder / name, "pt") as f:
        return f.metadata() or {}
