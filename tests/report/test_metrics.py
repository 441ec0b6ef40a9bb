"""PSNR and SSIM against their definitions, LPIPS only where it is installed, and one clear sentence for bad
pictures."""

import math
import sys
import types

import pytest
import torch

from cache_core.report.metrics import lpips, psnr, ssim


def pictures(batch=2, size=16, seed=0):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_psnr_by_hand():
    a = torch.zeros(3, 3, 4, 4)
    b = a.clone()
    b[0] += 0.1
    b[1] += 1.0
    got = psnr(a, b)
    assert got[:2] == pytest.approx([20, 0], abs=1e-5)
    assert got[2] == math.inf


def test_psnr_is_per_picture():
    a, b = pictures(seed=1), pictures(seed=2)
    assert psnr(a, b) == pytest.approx(psnr(a[:1], b[:1]) + psnr(a[1:], b[1:]), rel=1e-12)


def reference_ssim(a, b):
    """SSIM of one picture [C,H,W] after Wang et al. 2004, window by window."""
    x = torch.arange(11, dtype=torch.float64) - 5
    g = torch.exp(-x * x / (2 * 1.5**2))
    w = torch.outer(g, g) / g.sum() ** 2
    c1, c2, out = 0.01**2, 0.03**2, []
    for channel in range(a.shape[0]):
        for y in range(a.shape[1] - 10):
            for z in range(a.shape[2] - 10):
                p, q = (v[channel, y : y + 11, z : z + 11].double() for v in (a, b))
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq, cov = (
                    (w * (p - mp) ** 2).sum(),
                    (w * (q - mq) ** 2).sum(),
                    (w * (p - mp) * (q - mq)).sum(),
                )
                out.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(torch.stack(out).mean())


def test_ssim_against_its_definition():
    a = pictures(size=14, seed=3)
    b = (a * 0.7 + 0.3 * pictures(size=14, seed=4)).clamp(0, 1)
    assert ssim(a, b) == pytest.approx([reference_ssim(p, q) for p, q in zip(a, b, strict=True)], abs=1e-6)
    assert ssim(a, a) == pytest.approx([1, 1], abs=1e-9)
    assert all(s < 0.2 for s in ssim(a, 1 - a))


def test_ssim_without_kornia_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.metrics", None)
    with pytest.raises(ImportError, match="kornia"):
        ssim(pictures(), pictures())


@pytest.mark.parametrize("metric", [psnr, ssim, lpips])
@pytest.mark.parametrize(
    ("message", "a", "b"),
    [
        ("one shape", pictures(2), pictures(1)),
        ("batch, channels", pictures()[0], pictures()[0]),
        ("first .* not finite", pictures() / 0, pictures()),
        ("second .* not finite", pictures(), pictures() * math.nan),
        (r"second .* 0\.\.1", pictures(), pictures() * 255),
        (r"first .* 0\.\.1", pictures() - 0.5, pictures()),
    ],
)
def test_bad_pictures_are_refused(metric, message, a, b):
    with pytest.raises(ValueError, match=message):
        metric(a, b)


def test_ssim_refuses_small_pictures():
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(pictures(size=10), pictures(size=10))


def test_lpips_is_none_without_the_package_or_its_weights(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert lpips(pictures(), pictures()) is None

    def no_download(**kwargs):
        raise AssertionError("would download the weights")

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=no_download))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert lpips(pictures(), pictures()) is None


def test_lpips_passes_pictures_in_its_own_range(monkeypatch, tmp_path):
    class Distance(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, a, b, normalize=False):
            a, b = (2 * a - 1, 2 * b - 1) if normalize else (a, b)
            return (a - b).abs().amax((1, 2, 3), keepdim=True)

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-0.pth").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Distance))
    a = torch.zeros(2, 3, 8, 8)
    b = a.clone()
    b[1] += 0.5
    assert lpips(a, b) == pytest.approx([0, 1])
    with pytest.raises(ValueError, match="3 channels"):
        lpips(a[:, :1], b[:, :1])
