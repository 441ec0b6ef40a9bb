"""Models at their real sizes with random weights, and the same classes at a few thousand weights."""

from __future__ import annotations

import torch

from .gpu_host import Host

MODELS = {
    "flux": dict(
        config="Flux",
        unet=dict(
            image_model="flux",
            in_channels=16,
            out_channels=16,
            patch_size=2,
            vec_in_dim=768,
            context_in_dim=4096,
            hidden_size=3072,
            num_heads=24,
            mlp_ratio=4.0,
            depth=19,
            depth_single_blocks=38,
            axes_dim=[16, 56, 56],
            theta=10000,
            qkv_bias=True,
            guidance_embed=True,
            txt_ids_dims=[],
        ),
        latent=(16, 128, 128),
        text=(512, 4096),
        pooled=768,
        depth=("depth", "depth_single_blocks"),
    ),
    "wan": dict(
        config="WAN21_T2V",
        unet=dict(
            image_model="wan2.1",
            model_type="t2v",
            dim=5120,
            ffn_dim=13824,
            num_heads=40,
            num_layers=40,
            in_dim=16,
            out_dim=16,
            text_dim=4096,
            freq_dim=256,
        ),
        latent=(16, 21, 60, 104),
        text=(512, 4096),
        depth=("num_layers",),
    ),
    "qwen": dict(
        config="QwenImage",
        unet=dict(
            image_model="qwen_image",
            in_channels=64,
            num_layers=60,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=3584,
            axes_dims_rope=(16, 56, 56),
        ),
        latent=(16, 1, 166, 166),
        text=(128, 3584),
        depth=("num_layers",),
    ),
    "ltx2": dict(
        config="LTXAV",
        unet=dict(
            image_model="ltxav",
            in_channels=128,
            audio_in_channels=128,
            cross_attention_dim=4096,
            audio_cross_attention_dim=2048,
            attention_head_dim=128,
            audio_attention_head_dim=64,
            num_attention_heads=32,
            audio_num_attention_heads=32,
            caption_channels=3840,
            num_layers=48,
            connector_attention_head_dim=128,
            connector_num_attention_heads=30,
            connector_num_layers=1,
        ),
        latent=(128, 8, 16, 24),
        text=(256, 7680),
        depth=("num_layers",),
    ),
}
TINY = {
    "flux": dict(
        unet=dict(
            hidden_size=64,
            num_heads=2,
            context_in_dim=48,
            vec_in_dim=32,
            depth=2,
            depth_single_blocks=3,
            axes_dim=[8, 12, 12],
        ),
        latent=(16, 8, 8),
        text=(5, 48),
        pooled=32,
    ),
    "wan": dict(
        unet=dict(dim=48, ffn_dim=96, num_heads=2, num_layers=4, text_dim=48, freq_dim=64),
        latent=(16, 2, 8, 8),
        text=(5, 48),
    ),
    "qwen": dict(
        unet=dict(
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(8, 12, 12),
        ),
        latent=(16, 1, 8, 8),
        text=(5, 48),
    ),
    "ltx2": dict(
        unet=dict(
            cross_attention_dim=64,
            audio_cross_attention_dim=32,
            attention_head_dim=32,
            audio_attention_head_dim=16,
            num_attention_heads=2,
            audio_num_attention_heads=2,
            caption_channels=48,
            num_layers=2,
            connector_attention_head_dim=8,
            connector_num_attention_heads=2,
        ),
        latent=(128, 2, 4, 4),
        text=(5, 96),
    ),
}


def spec_of(which: str, tiny: bool, blocks: int = 0) -> dict:
    """Sizes of a model; blocks: at most so many of each kind, 0 for all."""
    spec = {**MODELS[which], "unet": dict(MODELS[which]["unet"])}
    if tiny:
        small = TINY[which]
        spec.update({**small, "unet": {**spec["unet"], **small["unet"]}})
    for key in spec["depth"] if blocks else ():
        spec["unet"][key] = min(spec["unet"][key], blocks)
    return spec


class Loaded:
    """A model patcher with its sizes, and conditions for it."""

    def __init__(self, host: Host, which: str, blocks: int = 0, dynamic: bool = False):
        import comfy.model_patcher
        import comfy.supported_models

        self.host, self.spec = host, spec_of(which, host.tiny, blocks or host.blocks)
        unet = dict(self.spec["unet"])
        family = getattr(comfy.supported_models, self.spec["config"])(dict(unet))
        family.set_inference_dtype(host.dtype, None)
        family.unet_config.update(unet)
        # In main memory, where its pages are not touched; ComfyUI moves it to the device as a real one.
        base = family.get_model({}, "")
        base.diffusion_model.eval().requires_grad_(False)
        patcher = comfy.model_patcher.ModelPatcherDynamic if dynamic else comfy.model_patcher.ModelPatcher
        self.patcher = patcher(base, load_device=host.device, offload_device=torch.device("cpu"))

    def fill_in_main_memory(self) -> Loaded:
        """Weights that take no time to make, for timings alone."""
        for p in self.patcher.model.parameters():
            p.data.fill_(1e-4)  # larger ones let activations grow until steps have nothing in common
        return self

    def load(self) -> Loaded:
        """Loads the model to the device and makes its weights there."""
        import comfy.model_management

        room = 2 * 2**30 if self.host.cuda else 0
        comfy.model_management.load_models_gpu([self.patcher], memory_required=room)
        _fill(self.patcher.model.diffusion_model)
        return self

    @property
    def megabytes(self) -> tuple[int, int]:
        """Of weights in all, and of those on the device."""
        sizes = [
            (p.numel() * p.element_size(), p.device.type == self.host.device.type)
            for p in self.patcher.model.parameters()
        ]
        return sum(n for n, _ in sizes) >> 20, sum(n for n, here in sizes if here) >> 20

    def conditions(self, batch: int, seed: int) -> list:
        g = torch.Generator().manual_seed(seed)
        more = {"guidance": 3.5}
        if "pooled" in self.spec:
            more["pooled_output"] = torch.randn(batch, self.spec["pooled"], generator=g)
        return [[torch.randn(batch, *self.spec["text"], generator=g), more]]

    def drop(self) -> None:
        """Frees the model at once; ComfyUI would copy its weights to main memory first."""
        import comfy.model_management

        for q in [*self.patcher.model.parameters(), *self.patcher.model.buffers()]:
            q.data = torch.empty(0, dtype=q.dtype)
        comfy.model_management.current_loaded_models.clear()
        self.host.release()


@torch.no_grad()
def _fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights of a size that keeps activations near 1, made where they lie."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, p in [*module.named_parameters(), *module.named_buffers()]:
        if not p.is_floating_point() or not p.numel():
            continue
        if p.device not in generators:
            generators[p.device] = torch.Generator(device=p.device).manual_seed(seed)
        if p.ndim > 1:
            p.normal_(0, p[0].numel() ** -0.5, generator=generators[p.device])
        else:
            p.normal_(0, 0.05, generator=generators[p.device])
            if "norm" in name and not name.endswith("bias"):
                p.add_(1.0)
