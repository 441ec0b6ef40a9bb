"""The bench on a GPU: its page agrees with its results and says what is short of the aims, and its bundle
holds what a bare machine lacks."""

import copy
import json
import tarfile

import pytest

from bench import gpu, gpu_bundle, gpu_page


@pytest.fixture(scope="module")
def results():
    return json.loads(gpu.RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_that_of_the_results(results):
    assert gpu_page.PAGE.read_text(encoding="utf-8") == gpu_page.page(results)


def test_every_run_says_where_it_ran(results):
    for run in results["runs"]:
        about = run["sections"]["environment"]
        assert all(about[key] for key in ("device", "dtype", "torch", "comfyui")) and run["date"]


def test_what_is_short_of_the_aims_is_said(results):
    run = copy.deepcopy(results["runs"][0])
    said = gpu_page.short(run)
    assert any("duca: 1.93 of an ideal 3.20" in s for s in said)
    assert any("1919 MB were estimated" in s for s in said)
    duca = run["sections"]["flux"]["runs"]["duca"]
    duca["speedup"] = 0.95 * duca["ideal"]
    run["sections"]["wan"]["runs"]["balanced"]["added_peak_mb"] = 1930
    now = gpu_page.short(run)
    assert len(now) == len(said) - 2 and not any("1919" in s for s in now)


def test_a_section_that_failed_or_was_left_out_is_named():
    run = {
        "date": "2026-01-01",
        "sections": {
            "environment": {
                "device": "card",
                "dtype": "bfloat16",
                "torch": "2",
                "comfyui": "ComfyUI 1",
                "attention": "a",
                "memory_mode": "NORMAL_VRAM",
            },
            "wan": {"skipped": "3 s left of 55 needed"},
            "qwen": {"error": "Traceback"},
        },
    }
    text = gpu_page.page({"runs": [run]})
    assert "wan: 3 s left of 55 needed; qwen: failed" in text


def test_a_run_is_saved_after_every_section_beside_earlier_ones(tmp_path):
    out = tmp_path / "gpu.json"
    out.write_text('{"runs": [{"date": "2020-01-01", "sections": {}}]}', encoding="utf-8")
    bench = gpu.Bench(gpu.parse(["--tiny", "--out", str(out), "--skip", "left"]))
    bench.section("good", lambda keep: {"x": 1})
    bench.section("left", lambda keep: {"x": 1})

    def bad(keep):
        keep({"half": 2})
        raise ValueError("no")

    bench.section("bad", bad)
    first, run = json.loads(out.read_text(encoding="utf-8"))["runs"]
    assert first["date"] == "2020-01-01" and list(run["sections"]) == ["good", "bad"]
    assert run["sections"]["bad"]["half"] == 2 and "ValueError: no" in run["sections"]["bad"]["error"]


def test_the_bundle_holds_code_and_packages_alone(tmp_path, monkeypatch):
    comfy, site = tmp_path / "ComfyUI", tmp_path / "ComfyUI/.venv/lib/python3.11/site-packages"
    for path in ("comfy/ops.py", "comfy/__pycache__/ops.pyc", "comfy/t5_tokenizer/vocab.json", "nodes.py"):
        (comfy / path).parent.mkdir(parents=True, exist_ok=True)
        (comfy / path).write_text("x = 1")
    for package in gpu_bundle.PURE:
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_text("")
    kitchen = tmp_path / "comfy_kitchen"
    kitchen.mkdir()
    (kitchen / "__init__.py").write_text("")
    monkeypatch.setattr(gpu_bundle, "FOLDER", tmp_path / ".gpu")
    monkeypatch.setattr(gpu_bundle, "_wheel", lambda *_: kitchen)
    said = gpu_bundle.bundle(comfy)
    with tarfile.open(tmp_path / ".gpu" / "bundle.tar.xz") as archive:
        files = {m.name for m in archive.getmembers() if m.isfile()}
    assert files == {
        "ComfyUI/comfy/ops.py",
        "ComfyUI/nodes.py",
        "site/comfy_kitchen/__init__.py",
        *(f"site/{p}/__init__.py" for p in gpu_bundle.PURE),
    }
    assert len(gpu_bundle.COMMAND) <= 2000 and gpu_bundle.COMMAND in said


def test_a_folder_without_comfyui_cannot_be_bundled(tmp_path):
    with pytest.raises(ValueError, match=r"is no folder of a ComfyUI with a \.venv"):
        gpu_bundle.bundle(tmp_path)
