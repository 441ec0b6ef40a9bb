"""The worker of the rivals bench in a ComfyUI of its own: nodes of all kinds run, what fails is told,
references come first."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EASY = {"reuse_threshold": 5.0, "start_percent": 0.3, "end_percent": 0.95, "verbose": False}


def row(group, nodes, steps=6, sampler="euler", **more):
    return {
        "group": group,
        "curve": group,
        "label": "",
        "steps": steps,
        "sampler": sampler,
        "nodes": nodes,
        **more,
    }


def test_the_worker_samples_every_row_and_tells_what_fails(tmp_path):
    broken = tmp_path / "broken-pack"
    broken.mkdir()
    (broken / "__init__.py").write_text("import no_such_module\n", encoding="utf-8")
    rows = [
        row("plain", []),
        row("exact", [], sampler="heun"),
        row("fewer", [], steps=3),
        row("core", [["EasyCache", EASY]]),
        row("core", [["EasyCache", EASY]], protect=True),
        row("preset", [["DualCache", {"preset": "fora"}]]),
        row("preset", [["DualCache", {"preset": "off"}]]),
        row("pack", [["NoSuchNode", {}]]),
        row("pack", [["NoSuchNode", {}]], pack="broken-pack"),
    ]
    job = {
        "comfyui": os.environ["COMFYUI_UNDER_TEST"],
        "packs": [str(broken)],
        "dtype": "float32",
        "guidance": 1.0,
        "size": 64,
        "captions": [
            "a large red circle center on a plain white background",
            "a small blue star left on a plain black background",
        ],
        "todo": [1],
        "rows": rows,
        "threads": 1,
        "minutes": 10,
    }
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench.rivals_worker",
            str(tmp_path / "job.json"),
            str(tmp_path / "out.jsonl"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    errors = {line["row"]: line["error"] for line in lines if "error" in line}
    told = {line["row"]: line for line in lines if "cpu" in line}
    assert errors == {
        7: "RuntimeError: the node NoSuchNode is not there",
        8: "RuntimeError: No module named 'no_such_module'",
    }
    assert (
        list(told)[:2] == [0, 1] and set(told) == set(range(7)) and lines[-2] == {"caption": 1, "done": True}
    )
    assert (
        [told[i]["full_calls"] for i in range(7)][:3] == [6, 11, 3]
        and told[5]["full_calls"] == 2
        and told[6]["full_calls"] == 6
    )
    assert told[3]["full_calls"] < 6 and "psnr" not in told[0] and told[6]["psnr"] == float("inf")
    assert (
        15 < told[2]["psnr"] < told[6]["psnr"] and told[4]["psnr"] > told[3]["psnr"] + 3
    )  # EasyCache spoils the sampler's tensor
    assert told[2]["exact"] > 15 and all(line["cpu"] > 0 and line["caption"] == 1 for line in told.values())
    assert lines[0]["versions"]["not_loaded"] == {"broken-pack": "No module named 'no_such_module'"}
