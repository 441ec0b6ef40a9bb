"""Lists of captions, and nodes that are made while a graph runs: each report and each picture is that of its
own run."""

import copy
import json
import pickle

import pytest

from tests.comfy.executing import CAPTIONS, carried, graph, node, reports

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black", "red", "blue")


def test_every_item_of_a_list_shows_its_own_report(execute, part):
    """However many there are."""
    captions = [f"a {size} {c} star center" for size in ("large", "small") for c in COLOURS[:5]]
    box = part("nodes.comfy.report_box").ReportBox
    kept, add = [], box.add
    box.add = lambda self, report, samples: (kept.append(report), add(self, report, samples))[1]
    try:
        outputs = execute(graph(*captions))
    finally:
        box.add = add
    assert not execute.errors and len(kept) == len(captions) == len(reports(outputs)) == 10
    assert [r["wall_seconds"] for r in reports(outputs)] == [r.wall_seconds for r in kept]
    assert not any("No run of this model" in text for text in outputs["8"]["text"])


def test_reports_are_bounded_by_their_size(part):
    module, run_report = part("nodes.comfy.report_box"), part("cache_core.report.run_report")
    import torch

    def report(steps):
        return run_report.Report([run_report.StepRecord(i, 0, 1.0, "F", "F") for i in range(steps)])

    latents = [torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(200)]
    box = module.ReportBox(limit=module._size(report(30)) * 50)
    for latent in latents:
        box.add(report(30), latent)
    found = [box.report_of(latent)[1] for latent in latents]
    assert found == [False] * 150 + [True] * 50
    box.add(report(10_000), latents[0])  # larger than the limit alone, and still the last run
    assert len(box.report.records) == 10_000 and box.report_of(latents[0])[1]
    assert not box.report_of(latents[-1])[1]
    assert module.MOST_BYTES // module._size(report(30)) > 500


WORKFLOW = {"nodes": [{"id": 5}], "extra": {"ds": 1}}


def seconds(kept: list) -> list:
    """Measured seconds of the runs that pictures carry, which no two runs share."""
    return [[run["wall_seconds"] for run in runs.values()] for runs in kept]


def short(reports: list) -> list:
    return [[float(f"{r['wall_seconds']:.4g}")] for r in reports]


@pytest.mark.parametrize("extra", [None, {"workflow": WORKFLOW}], ids=["API", "workflow"])
def test_every_picture_of_a_list_carries_the_run_that_made_it(execute, extra):
    outputs = execute(graph(), copy.deepcopy(extra))
    assert not execute.errors
    wanted = short(reports(outputs))
    assert len(wanted) == 3 == len({tuple(w) for w in wanted}) and seconds(carried(outputs)) == wanted
    assert all(list(runs) == ["5"] and runs["5"]["node"] == "10" for runs in carried(outputs))
    # ComfyUI makes the next pictures from the latents that it still has.
    again = graph()
    again["7"]["inputs"]["filename_prefix"] = "again/picture"
    outputs = execute(again, copy.deepcopy(extra))
    assert not execute.events("dual_cache.step") and seconds(carried(outputs)) == wanted
    assert all(runs["5"]["earlier"] for runs in carried(outputs))


def test_pictures_that_another_node_has_put_into_another_order_carry_no_run(execute):
    prompt = graph()
    prompt["9"] = node("TestReverse", images=["6", 0])
    prompt["7"]["inputs"]["images"] = ["9", 0]
    outputs = execute(prompt)
    assert carried(outputs) == [{}, {}, {}]
    prompt["20"]["inputs"]["text"] = CAPTIONS[1]  # of one picture there is only one run
    outputs = execute(prompt)
    assert seconds(carried(outputs)) == short(reports(outputs))


def test_pictures_of_two_samplers_carry_their_own_run(execute):
    """Also where both samplers share one Dual Cache node, and one of them is not cached."""
    prompt = graph(CAPTIONS[0])
    for number, model, seed in (("30", ["10", 0], 5), ("40", ["1", 0], 6)):
        inputs = {**prompt["5"]["inputs"], "seed": seed, "model": model}
        prompt[number] = node("KSampler", **inputs)
        prompt[number + "1"] = node("TestDecode", samples=[number, 0])
        prompt[number + "2"] = node("SaveImage", images=[number + "1", 0], filename_prefix="two/picture")
    outputs = execute(prompt)
    assert [list(runs) for n in ("7", "302", "402") for runs in carried(outputs, n)] == [["5"], ["30"], []]
    assert carried(outputs)[0]["5"]["wall_seconds"] != carried(outputs, "302")[0]["30"]["wall_seconds"]


def test_a_second_pass_carries_both_of_its_runs(execute):
    prompt = graph(CAPTIONS[0])
    prompt["30"] = node("KSampler", **{**prompt["5"]["inputs"], "latent_image": ["5", 0], "denoise": 0.5})
    prompt["31"] = node("TestDecode", samples=["30", 0])
    prompt["32"] = node("SaveImage", images=["31", 0], filename_prefix="second/picture")
    outputs = execute(prompt)
    assert list(carried(outputs)[0]) == ["5"] and set(carried(outputs, "32")[0]) == {"5", "30"}


def expanding(passes: int = 1) -> dict:
    prompt = graph(CAPTIONS[0])
    del prompt["10"], prompt["8"]
    prompt["12"] = node(
        "TestExpands",
        model=["1", 0],
        positive=["2", 0],
        negative=["3", 0],
        latent_image=["4", 0],
        seed=3,
        passes=passes,
    )
    del prompt["5"]
    prompt["6"]["inputs"]["samples"] = ["12", 0]
    return prompt


@pytest.mark.parametrize("passes", [1, 2])
def test_nodes_made_while_running_report_to_the_node_they_come_from(execute, passes):
    prompt = expanding(passes)
    outputs = execute(prompt, {"workflow": copy.deepcopy(WORKFLOW)})
    assert not execute.errors
    ended = execute.events("dual_cache.report")
    assert len(ended) == passes and {d["node"] for d in execute.events("dual_cache.step") + ended} == {"12"}
    wanted = short([ended[-1]["report"]])
    assert seconds(carried(outputs)) == wanted
    ((key, run),) = carried(outputs)[0].items()
    assert key == "12" == run["node"]
    prompt["7"]["inputs"]["filename_prefix"] = "again/picture"
    assert seconds(carried(execute(prompt, {"workflow": copy.deepcopy(WORKFLOW)}))) == wanted
    assert not execute.events("dual_cache.step")


def test_what_other_nodes_write_into_the_metadata_stays(part):
    metadata = part("nodes.comfy.metadata")
    data = metadata._on_prompt(
        {"prompt": {"1": node("KSampler")}, "extra_data": {"extra_pnginfo": {"workflow": {"nodes": []}}}}
    )
    info = data["extra_data"]["extra_pnginfo"]
    info["mine"] = 1
    info["workflow"]["extra"] = {"theirs": 2}
    plain = {"workflow": {"nodes": [], "extra": {"theirs": 2}}, "mine": 1}
    for made in (dict(info), {**info}, info.copy(), copy.deepcopy(info), json.loads(json.dumps(info))):
        assert made == plain and type(made) is dict
    assert pickle.loads(pickle.dumps(info)) == plain
