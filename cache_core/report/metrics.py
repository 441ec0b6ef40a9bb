"""How close pictures come to the uncached ones: PSNR, SSIM and, where it is installed, LPIPS."""

from __future__ import annotations

from pathlib import Path

import torch

WINDOW = 11
"""Edge in pixels of SSIM's Gaussian window, as in the paper."""


def psnr(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB of each pair of pictures [B,C,H,W] in 0..1; inf where they are
    equal."""
    a, b = _pair(a, b)
    error = (a.double() - b.double()).square().mean((1, 2, 3))
    return (-10 * error.log10()).tolist()


def ssim(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Structural similarity (Wang et al. 2004, 11 x 11 Gaussian, whole windows only) of each pair [B,C,H,W]
    in 0..1; 1 where equal."""
    a, b = _pair(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(
            f"pictures must be at least {WINDOW} pixels high and wide for SSIM, not {a.shape[-2]} x "
            f"{a.shape[-1]}."
        )
    try:
        from kornia.metrics import ssim as similarity
    except ImportError as error:
        raise ImportError("SSIM needs the package kornia: pip install kornia") from error
    # In double precision, because the variances are small differences of large numbers.
    return similarity(a.double(), b.double(), WINDOW, max_val=1.0, padding="valid").mean((1, 2, 3)).tolist()


def lpips(a: torch.Tensor, b: torch.Tensor) -> list[float] | None:
    """Perceptual distance (Zhang et al. 2018, AlexNet) of each pair of pictures [B,3,H,W] in 0..1; 0 where
    equal.

    None when the package lpips or its AlexNet weights are not on this machine: nothing is ever downloaded.
    """
    a, b = _pair(a, b)
    if a.shape[1] != 3:
        raise ValueError(f"pictures must have 3 channels for LPIPS, not {a.shape[1]}.")
    try:
        import lpips as package
    except ImportError:
        return None
    if not any(Path(torch.hub.get_dir(), "checkpoints").glob("alexnet-owt-*.pth")):
        return None
    net = package.LPIPS(net="alex", verbose=False)
    with torch.no_grad():
        return net(a.float(), b.float(), normalize=True).flatten().tolist()


def _pair(a, b):
    if a.shape != b.shape:
        raise ValueError(f"pictures must have one shape, not {list(a.shape)} and {list(b.shape)}.")
    if a.ndim != 4 or 0 in a.shape:
        raise ValueError(f"pictures must be [batch, channels, height, width], not {list(a.shape)}.")
    for name, x in (("first", a), ("second", b)):
        if not torch.isfinite(x).all():
            raise ValueError(f"the {name} pictures hold values that are not finite.")
        low, high = x.min().item(), x.max().item()
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"the {name} pictures must lie in 0..1, not {low:.3g}..{high:.3g}.")
    return a.detach().cpu(), b.detach().cpu()
