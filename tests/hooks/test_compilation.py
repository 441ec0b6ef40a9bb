"""A compiled model whose steps are skipped: the same numbers, and no graph that holds this pack's code."""

from types import SimpleNamespace

import pytest
import torch

from cache_core.controller import Controller
from cache_core.hooks import compilation as compiled
from cache_core.hooks.compilation import Compilation
from cache_core.models.families import blocks_of, find_family
from cache_core.recipes import from_preset
from cache_core.schedule.plan import explicit
from tests.tiny_flux import inputs, plain, random_flux

SIGMAS = [1.0, 0.85, 0.7, 0.5, 0.35, 0.2, 0.0]
PLAN = "FFAFAF"
pytestmark = [
    pytest.mark.skipif(not compiled.AVAILABLE, reason="this torch cannot leave compiled models as they are"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
]


class Graphs:
    """A backend that runs what was traced as it stands, and keeps the files whose code is in it."""

    def __init__(self):
        self.traced = []

    def __call__(self, graph, example):
        self.traced.append("".join(node.stack_trace or "" for node in graph.graph.nodes))
        return graph.forward

    def compile(self, target):
        return torch.compile(target, backend=self)


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def evaluations(settings, graphs=None, model=None):
    """The velocities of a run, through the model or through its compiled form, and the run's messages."""
    model = model or random_flux()
    cache, called, data = Controller(settings, SIGMAS), model, inputs(model)
    if graphs is not None:
        called, cache.compilation = graphs.compile(model), Compilation(graphs.compile)
    found = []
    for sigma in SIGMAS[:-1]:
        cache.begin_evaluation(sigma)
        with cache.call(model, ["cond"], (4, 4)):
            found.append(plain_of(called, model, sigma, data))
    assert "".join(r.actual for r in cache.book.records) == settings.schedule_for(6).kinds
    report = cache.finish()
    assert [m for m in model.modules() if "forward" in m.__dict__ and not hasattr(m, "dynamo_ctx")] == []
    return found, report.messages


def plain_of(called, model, sigma, data):
    x, tokens, pooled = data
    return (
        called(x, torch.full((len(x),), sigma, dtype=x.dtype), tokens, pooled)
        if called is not model
        else plain(model, sigma, data)
    )


LEVELS = {
    "final": ("balanced", PLAN),
    "output": ("ab-cache", PLAN),
    "stack": ("dicache", PLAN),
    "block": ("hyca", "FFFFAF"),
    "module": ("taylorseer", PLAN),
    "rows": ("duca", "FFCFAC"),
}


@pytest.mark.parametrize("name", LEVELS)
def test_results_are_those_without_and_no_graph_holds_our_code(graphs, name):
    preset, plan = LEVELS[name]
    settings = from_preset(preset, explicit(plan, 0.3))
    wanted, said = evaluations(settings)
    found, told = evaluations(settings, graphs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert set(told) - set(said) == {compiled.SAID}
    assert not any("cache_core" in files for files in graphs.traced)
    # What is worth compiling is: blocks that run as they are.
    assert bool(graphs.traced) == (name not in ("module", "rows"))
    seen = len(graphs.traced)
    evaluations(settings, graphs)
    assert len(graphs.traced) == seen  # a second run finds it all


def test_a_run_that_skips_nothing_leaves_the_compiled_model_alone(graphs):
    found, told = evaluations(from_preset("off"), graphs)
    assert told == [] and len(graphs.traced) == 1
    for a, b in zip(found, evaluations(from_preset("off"))[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_where_memory_runs_out_the_run_goes_on_with_its_compiled_blocks(graphs):
    model = random_flux()
    cache, called, data = (
        Controller(from_preset("balanced", explicit(PLAN)), SIGMAS),
        graphs.compile(model),
        inputs(model),
    )
    cache.compilation, times = Compilation(graphs.compile), []

    def fails_once(*_):
        times.append(1)
        if len(times) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.final_layer.register_forward_pre_hook(fails_once)
    for i, sigma in enumerate(SIGMAS[:-1]):
        cache.begin_evaluation(sigma)
        if i == 3:
            seen = len(graphs.traced)
        cache.guarded(lambda sigma=sigma: plain_of(called, model, sigma, data), model, ["cond"], (4, 4))
    handle.remove()
    report = cache.finish()
    assert any(m.startswith("Memory ran out") for m in report.messages) and {
        r.actual for r in report.records
    } == {"F"}
    assert len(graphs.traced) == seen and not any("cache_core" in files for files in graphs.traced)


@pytest.mark.parametrize(
    ("asked", "graphed"),
    [
        ({"backend": "cudagraphs"}, True),
        ({"backend": "inductor", "mode": "reduce-overhead"}, True),
        ({"mode": "max-autotune"}, True),
        ({"options": {"triton.cudagraphs": True}}, True),
        ({"mode": "max-autotune-no-cudagraphs"}, False),
        ({"backend": "eager"}, False),
        ({"backend": "eager", "options": {}, "mode": None, "fullgraph": False, "dynamic": None}, False),
    ],
)
def test_cuda_graphs_are_left_out(monkeypatch, asked, graphed):
    given, real = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: given.append(how) or real(function, **how))
    made = compiled.compiler(asked, "dual_cache")
    assert compiled.uses_graphs(asked) == graphed
    said = Compilation(made, graphs=graphed).said
    if asked.get("backend") == "cudagraphs":
        assert made is None and said == compiled.NO_GRAPHS
        return
    assert said == (compiled.WITHOUT_GRAPHS if graphed else compiled.SAID)
    function = made(lambda x: x + 1)
    assert not any(map(compiled.uses_graphs, given)) and given
    assert given[0].get("backend") == asked.get("backend")
    if asked.get("backend") == "eager":
        assert function(torch.ones(1)) == 2


def test_settings_of_a_run_are_not_guarded(monkeypatch):
    """Blocks are handed transformer_options, which hold the pack's own entries too."""
    asked, given = {"backend": "inductor", "options": {"epilogue_fusion": False}, "dynamic": None}, []
    monkeypatch.setattr(torch, "compile", lambda function, **how: given.append(how))
    compiled.compiler(asked, "dual_cache")(plain)
    (how,) = given
    guards = [
        SimpleNamespace(name=f"L['transformer_options']['{key}']")
        for key in ("block", "dual_cache", "dual_cache_run", "sigmas")
    ]
    assert how["options"].pop("guard_filter_fn")(guards) == [True, False, False, True] and how == asked


def test_what_others_compile_inside_a_block_stays_compiled(graphs):
    """An attention of another pack, called from a block whose inside is led another way."""
    model, other = random_flux(), Graphs()
    double = torch.compile(lambda x: x * 2, backend=other)
    norm = model.double_blocks[0].img_norm1
    own = norm.forward
    norm.forward = lambda x: double(own(x)) / 2
    cache = Controller(from_preset("taylorseer", explicit(PLAN)), SIGMAS)
    cache.compilation, called, data = Compilation(graphs.compile), graphs.compile(model), inputs(model)
    cache.begin_evaluation(1.0)
    with cache.call(model, ["cond"], (4, 4)):
        plain_of(called, model, 1.0, data)
    cache.finish()
    assert len(other.traced) == 1


def compile_in_place(graphs, *lists):
    """As older nodes do by object patches: each block is replaced by its compiled form."""
    for blocks in lists:
        for i, block in enumerate(blocks):
            blocks[i] = graphs.compile(block)


@pytest.mark.parametrize("name", LEVELS)
def test_blocks_that_another_node_has_compiled_in_place_are_found_and_counted_once(graphs, name):
    preset, plan = LEVELS[name]
    settings, model = from_preset(preset, explicit(plan, 0.3)), random_flux()
    family = find_family(model)
    before, ran = blocks_of(model, family), [0]
    for block in before:
        block.module.register_forward_pre_hook(lambda *_: ran.__setitem__(0, ran[0] + 1))
    wanted, said = evaluations(settings, model=model)
    calls, ran[0] = ran[0], 0
    compile_in_place(graphs, model.double_blocks, model.single_blocks)
    assert blocks_of(model, family) == before
    found, told = evaluations(settings, model=model)
    assert ran[0] == calls
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert set(told) - set(said) == {compiled.SAID}
    assert not any("cache_core" in files for files in graphs.traced)
    assert bool(graphs.traced) == (name not in ("module", "rows"))


def test_only_the_blocks_that_another_node_has_compiled_are_compiled(graphs):
    model = random_flux()
    compile_in_place(graphs, model.double_blocks)
    evaluations(from_preset("balanced", explicit(PLAN)), model=model)
    assert any("img_attn" in files for files in graphs.traced)
    assert not any("linear1" in files for files in graphs.traced)


def test_a_run_that_skips_nothing_leaves_blocks_compiled_in_place_alone(graphs):
    model = random_flux()
    wanted = evaluations(from_preset("off"), model=model)[0]
    compile_in_place(graphs, model.double_blocks, model.single_blocks)
    found, told = evaluations(from_preset("off"), model=model)
    assert told == [] and graphs.traced
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
