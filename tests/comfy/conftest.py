"""Fixtures of the tests that run inside ComfyUI: the pack as ComfyUI loads it, tiny random FLUX models,
conditioning, sampling.

COMFYUI_UNDER_TEST names the ComfyUI folder; the Python is the one that ComfyUI runs with. Everything runs on
the CPU, and ComfyUI's input, output and models folders are a temporary one."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

try:
    from stress import comfy_start  # before all of ComfyUI
except ImportError as missing:
    pytest.exit(f"tests/comfy: {missing}", 4)

import comfy.ldm.flux.model
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.supported_models

from tests.comfy import executing, tiny_families

TEXT_WIDTH, POOLED_WIDTH = 48, 32
EXTRAS = comfy_start.COMFYUI / "comfy_extras"


def pytest_collection_modifyitems(config, items):
    """Leaves out tests that have no case in this ComfyUI version, whose lists of cases are empty."""
    empty = [
        item
        for item in items
        if any("empty parameter set" in str(m.kwargs.get("reason")) for m in item.iter_markers("skip"))
    ]
    if empty:
        config.hook.pytest_deselected(items=empty)
        items[:] = [item for item in items if item not in empty]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def pack():
    """The pack's module, imported from its folder as ComfyUI's nodes.load_custom_node does."""
    return comfy_start.pack()


@pytest.fixture(scope="session")
def part(pack):
    """`part("cache_core.schedule.plan")`: a module of the imported pack, the very one its nodes use."""
    return comfy_start.part


CHECKPOINT_BUFFERS = ("pos_embed", "inv_freq", ".beta")


def fill_(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Writes every parameter of a freshly built (uninitialised) module from one seed, keeping activations
    near 1; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            noise *= tensor[0].numel() ** -0.5
        else:
            noise = 0.05 * noise + (1.0 if "norm" in name and not name.endswith("bias") else 0.0)
        tensor.data = noise.to(tensor.dtype)
    for name, tensor in module.named_buffers():  # of a checkpoint, and until then whatever lay in memory
        if name.endswith(CHECKPOINT_BUFFERS):
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return module.requires_grad_(False)


@pytest.fixture(scope="session")
def build_flux():
    """`build_flux(seed=0, **changes)`: a ModelPatcher with a random float32 FLUX.1, 2 double and 2 single
    blocks of width 64.

    `changes` replace entries of the transformer's configuration, such as depth, depth_single_blocks or
    guidance_embed."""

    def build(seed: int = 0, **changes) -> comfy.model_patcher.ModelPatcher:
        config = dict(
            in_channels=16,
            out_channels=16,
            patch_size=2,
            vec_in_dim=POOLED_WIDTH,
            context_in_dim=TEXT_WIDTH,
            hidden_size=64,
            num_heads=2,
            mlp_ratio=4.0,
            depth=2,
            depth_single_blocks=2,
            axes_dim=[8, 12, 12],
            theta=10000,
            qkv_bias=True,
            guidance_embed=True,
        )
        if (
            "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__
        ):  # required by newer versions, unknown to older ones
            config["txt_ids_dims"] = []
        family = comfy.supported_models.Flux({"image_model": "flux", **config, **changes})
        family.set_inference_dtype(torch.float32, None)
        model = family.get_model({}, "")
        fill_(model.diffusion_model, seed)
        return comfy.model_patcher.ModelPatcher(
            model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
        )

    return build


@pytest.fixture
def flux(build_flux):
    """A fresh tiny FLUX.1 ModelPatcher; two of them have equal weights."""
    return build_flux()


@pytest.fixture(scope="session")
def condition():
    """`condition(seed=1, tokens=5, guidance=3.5, batch=1, **extra)`: random conditioning in ComfyUI's list
    form."""

    def make(seed: int = 1, tokens: int = 5, guidance: float = 3.5, batch: int = 1, **extra) -> list:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(batch, tokens, TEXT_WIDTH, generator=generator)
        return [
            [
                text,
                {
                    "pooled_output": torch.randn(batch, POOLED_WIDTH, generator=generator),
                    "guidance": guidance,
                    **extra,
                },
            ]
        ]

    return make


@pytest.fixture(scope="session")
def sample(condition):
    """`sample(model, ...)`: latents [B,16,size,size] from comfy.sample.sample, the function behind KSampler.

    Positive and negative conditioning default to `condition(1)` and `condition(2)`; noise comes from `seed`
    alone."""

    def run(
        model,
        positive=None,
        negative=None,
        *,
        steps=4,
        cfg=1.0,
        sampler="euler",
        scheduler="simple",
        seed=0,
        batch=1,
        size=8,
        latent=None,
        **options,
    ):
        latent = torch.zeros(batch, 16, size, size) if latent is None else latent
        noise = comfy.sample.prepare_noise(latent, seed)
        positive, negative = positive or condition(1), negative or condition(2)
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            latent,
            disable_pbar=True,
            seed=seed,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def cached(part):
    """`cached(model, "FFCA", ratio=0.3, preset=None, **settings)`: the model as the Dual Cache node patches
    it.

    Letters are an explicit plan, `ratio` the token ratio of its C steps; with a preset they replace the
    preset's plan, or may be left out."""
    host, recipes = part("nodes.comfy.patching"), part("cache_core.recipes")
    schedule, settings = part("cache_core.schedule.plan"), part("cache_core.config")

    def make(model, kinds=None, *, ratio=0.3, preset=None, node_id=None, **changes):
        plan = None if kinds is None else schedule.explicit(kinds, ratio)
        chosen = (
            recipes.from_preset(preset, plan, **changes)
            if preset
            else settings.CacheConfig(schedule=plan, **changes)
        )
        return host.patch(model, host.KEY, host.CacheRequest(chosen, node_id))

    return make


@pytest.fixture(scope="session")
def report_of(part):
    """`report_of(model)`: the report of the patched model's last run, or None."""
    return lambda model: part("nodes.comfy.requests").request_of(model).box.report


@pytest.fixture(scope="session")
def ran(report_of):
    """`ran(model)`: the kinds that the evaluations of the patched model's last run really had, as letters."""
    return lambda model: "".join(record.actual for record in report_of(model).records)


@pytest.fixture(scope="session")
def shims():
    """`shims(model)`: names of the modules of a ModelPatcher that have a `forward` of their own; a run must
    leave none."""
    return lambda model: [
        name for name, module in model.model.named_modules() if "forward" in module.__dict__
    ]


@pytest.fixture(scope="session")
def fill():
    """`fill_`."""
    return fill_


@pytest.fixture(scope="session")
def models():
    """`models(name)`: the tiny random model of a name in `tiny_families`, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_families.build(name, fill_)
        return made[name].model

    return get


@pytest.fixture
def runs(part):
    """`runs(model, kinds, level=..., ...)`: a controller and a function that evaluates the model under it, as
    the host does."""
    host, controller = part("nodes.comfy.patching"), part("cache_core.controller")
    settings, schedule = part("cache_core.config"), part("cache_core.schedule.plan")
    wrappers = {comfy.patcher_extension.WrappersMP.APPLY_MODEL: {host.KEY: [host.apply_model]}}

    def make(base, kinds, sigmas=None, **changes):
        plan = settings.CacheConfig(schedule=schedule.explicit(kinds, 0.3), **changes)
        cache = controller.Controller(plan, sigmas or tiny_families.SIGMAS[: len(kinds)] + [0.0])
        run = host.Run(cache, host.CacheRequest(plan))

        def evaluate(sigma, data, branches=None, begin=True, more=()):
            if begin:
                cache.begin_evaluation(sigma)
            return tiny_families.call(
                base, sigma, data, {"wrappers": wrappers, host.RUN: run, **dict(more)}, branches
            )

        return cache, evaluate

    return make


@pytest.fixture
def count(part):
    """`count(model)`: a Counter of the linear layers of blocks, by block and path, that grows as they run."""
    families, seen, handles = part("cache_core.models.families"), Counter(), []

    def watch(net):
        for block in families.blocks_of(net, families.find_family(net)):
            for path, m in block.module.named_modules():
                if isinstance(m, torch.nn.Linear):
                    handles.append(
                        m.register_forward_pre_hook(lambda *_, mark=(block.name, path): seen.update([mark]))
                    )
        return seen

    yield watch
    for handle in handles:
        handle.remove()


@pytest.fixture
def replayed(part):
    """`replayed(model, block name)`: paths of the linear layers in the sub-modules of a block that the level
    of modules replays."""
    families = part("cache_core.models.families")

    def paths(net, name):
        block = next(b for b in families.blocks_of(net, families.find_family(net)) if b.name == name)
        modules = getattr(block.spec, "modules", ())
        return {
            path
            for path, _ in block.module.named_modules()
            if any(path == m or path.startswith(m + ".") for m in modules)
        }

    return paths


@pytest.fixture
def levels(part):
    """`levels(model)`: the levels that the table gives a model."""
    families, fitting = part("cache_core.models.families"), part("cache_core.models.capabilities")
    return lambda net: fitting.levels_of(families.find_family(net))


@pytest.fixture
def execute(part, monkeypatch):
    """`execute(graph, extra=None)`: ComfyUI's own executor in this process, with the nodes of `executing`."""
    import asyncio

    import nodes as comfyui

    if "EmptySD3LatentImage" not in comfyui.NODE_CLASS_MAPPINGS:
        asyncio.run(comfyui.load_custom_node(str(EXTRAS / "nodes_sd3.py"), module_parent="comfy_extras"))
    for name, made in [(n.GET_SCHEMA().node_id, n) for n in part("nodes").NODES] + [
        *executing.FOREIGN.items()
    ]:
        monkeypatch.setitem(comfyui.NODE_CLASS_MAPPINGS, name, made)
    run = executing.Executor(part)
    for module in ("nodes.comfy.events", "nodes.comfy.metadata"):
        monkeypatch.setattr(part(module), "running_server", lambda: run.server)
    return run
