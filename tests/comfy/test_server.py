"""A real ComfyUI server with the pack in custom_nodes: graphs go in over HTTP, pictures, reports and events
come back."""

import http.client
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import ImageChops

from stress import determinism
from stress.server import FOLDER, NotStarting, Server

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
KINDS = "FFFAAFAAFAAF"  # of balanced
CAPTION = "a large red heart center on a checkered white background"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server") / "base folder")
    try:
        try:
            running.ready()
        except NotStarting as missing:
            pytest.skip(str(missing))
        yield running
    finally:
        running.stop()


def node(name, **inputs):
    return {"class_type": name, "inputs": inputs}


def settings(**changes):
    """What KSampler and the Dual Cache Sampler have in common."""
    return {
        "seed": 11,
        "steps": STEPS,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": ["2", 0],
        "negative": ["3", 0],
        "latent_image": ["4", 0],
        "denoise": 1.0,
        **changes,
    }


CACHING = {"preset": "balanced", "forecast": "from preset", "gain": 0.9}


def graph(*, loaders=False, **changes):
    """The embedded workflow: the demo model, two captions, the Dual Cache Sampler, a picture and the
    report."""
    model, vae = (["1", 0], ["9", 0]) if loaders else (["1", 0], ["1", 1])
    nodes = {
        "1": node("DualCacheDemoModel"),
        "2": node("DualCacheDemoCaption", caption=CAPTION),
        "3": node("DualCacheDemoCaption", caption=""),
        "4": node("EmptySD3LatentImage", width=256, height=256, batch_size=1),
        "5": node("DualCacheSampler", model=model, **CACHING, **settings(**changes)),
        "6": node("VAEDecode", samples=["5", 0], vae=vae),
        "7": node("SaveImage", images=["6", 0], filename_prefix="dual_cache"),
        "8": node("CacheReport", report=["5", 1]),
    }
    if loaders:
        nodes["1"] = node("UNETLoader", unet_name="dual_cache_demo.safetensors", weight_dtype="default")
        nodes["9"] = node("VAELoader", vae_name="dual_cache_demo_vae.safetensors")
    return nodes


def with_ksampler(nodes):
    """The same graph through Dual Cache and ComfyUI's KSampler."""
    return {
        **nodes,
        "5": node("KSampler", model=["10", 0], **settings()),
        "10": node("DualCache", model=["1", 0], **CACHING),
        "8": node("CacheReport", model=["10", 0], latent=["5", 0]),
    }


def of_type(messages, kind):
    return [data for type_, data in messages if type_ == kind]


def check_report(messages, outputs, sender):
    """The report on the node, the events of the run, and what they say of each other; gives the kinds that
    ran."""
    assert not of_type(messages, "execution_error")
    (text,), (data,) = outputs["8"]["text"], outputs["8"]["dual_cache_report"]
    report = json.loads(data)
    steps, (end,) = of_type(messages, "dual_cache.step"), of_type(messages, "dual_cache.report")
    assert {d["node"] for d in [*steps, end]} == {sender}
    (begun,) = of_type(messages, "execution_start")
    assert {d["prompt_id"] for d in [*steps, end]} == {begun["prompt_id"]}
    # Errors and indicators are read when the run ends, so that no step waits for the device.
    live, final = (
        [{k: v for k, v in r.items() if k not in ("forecast_error", "indicator")} for r in records]
        for records in ([d["record"] for d in steps], report["records"])
    )
    assert live == final and {d["steps"] for d in steps} == {STEPS}
    assert end["report"] == report and end["text"] == text
    assert "FLUX" in text and report["family"] == "FLUX" and not report["messages"]
    assert report["totals"]["evaluations"] == STEPS == report["totals"]["calls"]
    return "".join(r["actual"] for r in report["records"])


def same(a, b):
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


@pytest.fixture(scope="module")
def first(server):
    """The embedded workflow's run: messages, outputs and the picture."""
    messages, outputs = server.queue(graph())
    return messages, outputs, server.picture(outputs, "7")


def test_the_pack_is_loaded_under_a_name_that_needs_quoting(server):
    info = server.get("/object_info")
    for name in (
        "CacheScheduleBuilder",
        "DualCache",
        "VCacheAttentionPatch",
        "DualCacheSampler",
        "CacheReport",
        "DualCacheDemoModel",
        "DualCacheDemoCaption",
    ):
        assert info[name]["python_module"] == f"custom_nodes.{FOLDER}", name
    log = server.log.read_text(encoding="utf-8")
    assert "IMPORT FAILED" not in log and FOLDER in log


def test_what_the_front_end_fetches_is_served(server):
    """Scripts, help pages with their pictures, templates with their thumbnails, and translations."""
    listed = server.get("/extensions")
    for path in (path for path in (ROOT / "web").rglob("*") if path.is_file()):
        name = path.relative_to(ROOT / "web").as_posix()
        assert server.get(f"/extensions/{FOLDER}/{name}") == path.read_bytes(), name
        assert path.suffix != ".js" or f"/extensions/{quote(FOLDER)}/{name}" in listed, name
    templates = {path.stem: path for path in (ROOT / "workflows").glob("*.json")}
    assert set(server.get("/api/workflow_templates")[FOLDER]) == set(templates)
    for name, path in templates.items():
        assert server.get(f"/api/workflow_templates/{FOLDER}/{name}.json") == json.loads(
            path.read_text(encoding="utf-8")
        )
        assert (
            server.get(f"/api/workflow_templates/{FOLDER}/{name}.jpg")
            == path.with_suffix(".jpg").read_bytes()
        )
    translations = server.get("/i18n")
    assert all("DualCache" in translations[language]["nodeDefs"] for language in ("en", "zh"))


@pytest.mark.parametrize(
    "name", ["nothing.js", "../pyproject.toml", "%2e%2e/pyproject.toml", "..%2fpyproject.toml", "docs/"]
)
def test_nothing_else_is_served(server, name):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", f"/extensions/{quote(FOLDER)}/{name}")
    assert connection.getresponse().status == 404
    connection.close()


def test_the_embedded_workflow_gives_a_picture_and_a_report(first):
    messages, outputs, picture = first
    assert check_report(messages, outputs, "5") == KINDS
    assert picture.size == (256, 256) and max(hi - lo for lo, hi in picture.getextrema()) > 0


def test_dual_cache_with_ksampler_gives_the_same_picture_and_report(server, first):
    messages, outputs = server.queue(with_ksampler(graph()))
    assert check_report(messages, outputs, "10") == KINDS
    assert same(server.picture(outputs, "7"), first[2])


def test_a_graph_queued_again_gives_the_same_picture(server, first):
    other = server.queue(graph(seed=12))[1]
    assert not same(server.picture(other, "7"), first[2])
    messages, outputs = server.queue(graph())
    assert check_report(messages, outputs, "5") == KINDS
    assert same(server.picture(outputs, "7"), first[2])


def test_an_interrupted_run_leaves_nothing(server, first):
    messages, outputs = server.queue(graph(steps=300), interrupt_at="dual_cache.step")
    assert messages[-1][0] == "execution_interrupted" and "7" not in outputs
    (end,) = of_type(messages, "dual_cache.report")
    assert 0 < len(end["report"]["records"]) < 300
    assert same(server.picture(server.queue(graph())[1], "7"), first[2])


def test_bad_input_is_one_sentence_on_the_node(server):
    nodes = {
        **graph(),
        "11": node(
            "CacheScheduleBuilder",
            preset="custom",
            steps=STEPS,
            interval=3,
            pattern="aggressive only",
            ratio=0.1,
            warmup=1,
            tail=0,
            start=0.0,
            end=1.0,
            explicit="FXF",
        ),
    }
    nodes["5"]["inputs"]["schedule"] = ["11", 0]
    messages, _ = server.queue(nodes)
    (error,) = of_type(messages, "execution_error")
    assert error["node_id"] == "11" and error["exception_type"] == "ValueError"
    assert "letter 2 of explicit must be F, C or A." in error["exception_message"]


def test_comfyuis_own_loaders_read_the_embedded_model(server, first):
    import comfyui_version

    if comfyui_version.__version__.startswith("0.3."):
        # It takes every FLUX for 3072 wide; this is why the pack has a loader of its own.
        (error,) = of_type(server.queue(graph(loaders=True))[0], "execution_error")
        assert "size mismatch" in error["exception_message"]
        return
    messages, outputs = server.queue(graph(loaders=True))
    assert check_report(messages, outputs, "5") == KINDS
    assert same(server.picture(outputs, "7"), first[2])


# --- metadata of saved pictures ---------------------------------------------------------------------

WORKFLOW = {"id": "8b0e", "nodes": [{"id": 5}], "extra": {"ds": {"scale": 2}}, "version": 0.4}
REQUEUED = {**WORKFLOW, "extra": {"dual_cache": {"format": 1, "runs": {"5": {"text": "of another picture"}}}}}


def carried(info):
    """The runs in a picture's metadata by the node that sampled, whose other entries are as they were
    sent."""
    workflow = json.loads(info["workflow"])
    runs = workflow["extra"].pop("dual_cache", {"format": 1, "runs": {}})
    assert workflow == WORKFLOW and json.loads(info["other"]) == {"kept": [1, 2]} and "prompt" in info
    assert runs["format"] == 1
    return runs["runs"]


@pytest.mark.parametrize("wire", [lambda nodes: nodes, with_ksampler], ids=["Dual Cache Sampler", "KSampler"])
def test_a_saved_picture_carries_recipe_schedule_and_report(server, part, wire):
    nodes = wire(graph())
    nodes["5"]["inputs"]["seed"] = 31
    extra = {"workflow": WORKFLOW, "other": {"kept": [1, 2]}}
    _, outputs = server.queue(nodes, extra=extra)
    report, runs = json.loads(outputs["8"]["dual_cache_report"][0]), carried(server.file(outputs, "7").info)
    run = runs["5"]
    assert list(runs) == ["5"] and run["node"] == ("10" if "10" in nodes else "5") and "earlier" not in run
    assert (
        run["schedule"]
        == run["records"]["actual"]
        == KINDS
        == "".join(r["actual"] for r in report["records"])
    )
    assert run["records"]["milliseconds"] == [float(f"{r['milliseconds']:.4g}") for r in report["records"]]
    assert run["totals"]["calls"] == report["totals"]["calls"] == STEPS and run["wall_seconds"] == float(
        f"{report['wall_seconds']:.4g}"
    )
    recipes = part("cache_core.recipes")
    assert (
        recipes.settings_of(run["recipe"]) == recipes.from_preset("balanced") and len(json.dumps(runs)) < 4096
    )
    # ComfyUI makes the next picture from the latent that it still has: it carries the run that made it.
    nodes["7"]["inputs"]["filename_prefix"] = f"again/{len(nodes)}"
    messages, outputs = server.queue(nodes, extra=extra)
    assert not of_type(messages, "dual_cache.step")
    assert carried(server.file(outputs, "7").info) == {"5": {**run, "earlier": True}}


def test_a_picture_does_not_carry_the_run_of_another(server):
    """Which its workflow has brought along, opened outside the front end."""
    nodes = {**graph(), "5": node("KSampler", model=["1", 0], **settings(seed=32))}
    del nodes["8"]
    extra = {"workflow": REQUEUED, "other": {"kept": [1, 2]}}
    assert (
        "dual_cache"
        not in json.loads(server.file(server.queue(nodes, extra=extra)[1], "7").info["workflow"])["extra"]
    )
    nodes = graph(seed=33)
    runs = json.loads(server.file(server.queue(nodes, extra=extra)[1], "7").info["workflow"])["extra"][
        "dual_cache"
    ]["runs"]
    assert list(runs) == ["5"] and runs["5"]["text"].startswith("balanced on FLUX")


def test_without_a_workflow_the_run_stands_beside_the_prompt(server):
    info = server.file(server.queue(graph(seed=34))[1], "7").info
    assert json.loads(info["dual_cache"])["runs"]["5"]["schedule"] == KINDS and set(info) == {
        "dual_cache",
        "prompt",
    }


def test_odd_metadata_loses_no_picture(server):
    for extra in ({"workflow": "no object"}, {"workflow": {"extra": []}}, {"dual_cache": "theirs"}):
        outputs = server.queue(graph(seed=35), extra=extra)[1]
        assert server.picture(outputs, "7").size == (256, 256)


@pytest.mark.parametrize("name", ["planned, with a profile", "tokens of a seed"])
def test_a_picture_can_be_made_again_from_what_it_carries(server, name):
    row = determinism.repeated(name, server, server)
    assert row.ok, row.said
