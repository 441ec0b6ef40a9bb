"""Nodes that only show something never fail a graph whose sampler has run, in ComfyUI's own executor."""

import pytest

from tests.comfy.executing import CAPTIONS, graph, node


def bypassed() -> dict:
    """Dual Cache bypassed: its links go to the model itself."""
    prompt = graph(CAPTIONS[0])
    del prompt["10"]
    prompt["5"]["inputs"]["model"] = prompt["8"]["inputs"]["model"] = ["1", 0]
    return prompt


def empty_segment() -> dict:
    prompt = graph(CAPTIONS[0])
    inputs = {key: value for key, value in prompt["5"]["inputs"].items() if key not in ("seed", "denoise")}
    inputs |= {"add_noise": "enable", "noise_seed": 1, "start_at_step": 10, "end_at_step": 5}
    prompt["5"] = node("KSamplerAdvanced", **inputs, return_with_leftover_noise="disable")
    return prompt


def nothing_to_denoise() -> dict:
    return graph(CAPTIONS[0], denoise=0.0)


def another_model() -> dict:
    prompt = graph(CAPTIONS[0])
    prompt["11"] = node("DualCache", model=["1", 0], preset="fora")
    prompt["8"]["inputs"]["model"] = ["11", 0]
    return prompt


def nothing_connected() -> dict:
    prompt = graph(CAPTIONS[0])
    prompt["8"]["inputs"] = {"save": True}
    return prompt


def compare_bypassed() -> dict:
    prompt = bypassed()
    inputs = {key: value for key, value in prompt["5"]["inputs"].items() if key != "denoise"}
    prompt["9"] = node("CacheCompare", **inputs, vae=["1", 1])
    return prompt


def compare_other_sizes() -> dict:
    prompt = graph(CAPTIONS[0])
    prompt["44"] = node("EmptySD3LatentImage", width=96, height=64, batch_size=1)
    prompt["55"] = node("KSampler", **{**prompt["5"]["inputs"], "latent_image": ["44", 0]})
    prompt["66"] = node("TestDecode", samples=["55", 0])
    prompt["9"] = node("CacheCompare", uncached=["66", 0], cached=["6", 0])
    return prompt


CASES = {
    bypassed: ("8", "Dual Cache has not patched this model"),
    empty_segment: ("8", "no sampler has run this model"),
    nothing_to_denoise: ("8", "no sampler has run this model"),
    another_model: ("8", "another model was sampled"),
    nothing_connected: ("8", "connect a report, or a model"),
    compare_bypassed: ("9", "needs a model that Dual Cache has patched"),
    compare_other_sizes: ("9", "only equal sizes can be compared"),
}


@pytest.mark.parametrize("make", CASES, ids=lambda f: f.__name__)
def test_a_display_without_anything_to_show_says_so(execute, make):
    shown, sentence = CASES[make]
    outputs = execute(make())
    assert not execute.errors and outputs["7"]["images"]
    (text,) = outputs[shown]["text"]
    assert sentence in text
    assert shown != "9" or ("9", text) in execute.server.shown


def test_a_browser_that_cannot_be_told_fails_no_run(execute, monkeypatch, caplog):
    """Such as one that has gone in the middle of the run."""
    monkeypatch.setattr(execute.server, "send_sync", refuse_ours(execute.server.send_sync))
    prompt = graph(CAPTIONS[0])
    outputs = execute(prompt)
    assert not execute.errors and outputs["7"]["images"]
    assert outputs["8"]["text"][0].startswith("balanced on FLUX")
    assert "the run itself is not affected" in caplog.text


def refuse_ours(send):
    def sent(event, data, sid=None):
        if event.startswith("dual_cache"):
            raise ConnectionError("gone")
        send(event, data, sid)

    return sent


def test_an_empty_list_of_noise_levels(call, embedded_sigmas):
    text, *_ = call("CacheReport", **embedded_sigmas).result
    assert "no sampler has run this model" in text


@pytest.fixture
def call(part):
    """`call(name, **inputs)`: a node's execute, as ComfyUI calls it."""
    nodes = {n.GET_SCHEMA().node_id: n for n in part("nodes").NODES}
    return lambda name, **inputs: getattr(nodes[name].PREPARE_CLASS_CLONE({}), "EXECUTE_NORMALIZED")(**inputs)


@pytest.fixture
def embedded_sigmas(call, flux, condition):
    """A model that SamplerCustom was given no noise levels for, and the latent that it gave back."""
    import comfy.sample
    import comfy.samplers
    import torch

    (model,) = call("DualCache", model=flux).result
    latent = torch.zeros(1, 16, 8, 8)
    samples = comfy.sample.sample_custom(
        model,
        torch.randn(1, 16, 8, 8),
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.FloatTensor([]),
        condition(1),
        condition(2),
        latent,
        disable_pbar=True,
    )
    return {"model": model, "latent": {"samples": samples}}
