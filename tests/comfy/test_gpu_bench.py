"""The bench on a GPU, tried on the CPU with tiny models, as on a machine that lacks most packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

from stress.comfy_start import COMFYUI, comfyui_version

ROOT = Path(__file__).resolve().parents[2]
MISSING = "av,torchaudio,torchvision,kornia,spandrel,alembic,sqlalchemy"
ATTENTION = COMFYUI / "comfy" / "ldm" / "modules" / "attention.py"
if "import comfy_kitchen" not in ATTENTION.read_text(encoding="utf-8"):  # newer ones cannot run without it
    MISSING += ",comfy_kitchen"


def test_every_section_runs_on_tiny_models(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "bench.gpu", "--tiny", "--comfy", str(COMFYUI), "--out", str(out)]
    took = subprocess.run(
        [*command, "--skip", "compiled,attention_backends"],
        cwd=ROOT,
        env={**os.environ, "DUAL_CACHE_HIDE": MISSING},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if comfyui_version().startswith("0.3."):
        assert took.returncode == 1 and "bench.gpu needs ComfyUI 0.4 or newer" in took.stderr
        return
    assert took.returncode == 0, took.stderr[-2000:]
    (run,) = json.loads(out.read_text(encoding="utf-8"))["runs"]
    sections = run["sections"]
    assert not {n: s["error"] for n, s in sections.items() if "error" in s}
    assert {n for n, s in sections.items() if "skipped" in s} == {"synchronising", "out_of_memory", "dynamic"}
    runs = sections["flux"]["runs"]
    assert all("A" in runs[name]["ms"] for name in ("balanced", "quality", "fast", "adaptive"))
    assert sections["guidance"]["kinds"].count("A") == 4
    assert {"F", "C", "A"} <= set(runs["duca"]["ms"]) and runs["taylorseer"]["kinds"].count("A")
    exact = sections["correct"]
    assert exact["off_equals_plain"] and exact["cached_repeats"] and exact["left_behind"] == []
    assert exact["C of all rows"]["equal"] and exact["A at the final hidden state"]["equal"]
    assert "offloaded" in sections and sections["launches"]["balanced"]["A"]["operators"] > 0
