"""Models, text and pictures through ComfyUI's own loaders, encoder and decoder."""

from __future__ import annotations

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch


def load_flux(path):
    """A FLUX-layout MODEL from a safetensors file, through ComfyUI's own loader.

    ComfyUI before 0.4 takes every FLUX for 3072 wide; there the model is built from the widths in the file.
    """
    state = comfy.utils.load_torch_file(str(path))
    found = comfy.model_detection.detect_unet_config(state, "")
    width = state["img_in.weight"].shape[0]
    if found["hidden_size"] == width:
        return comfy.sd.load_diffusion_model_state_dict(state)
    found.update(
        hidden_size=width,
        num_heads=width // sum(found["axes_dim"]),
        context_in_dim=state["txt_in.weight"].shape[1],
    )
    config = comfy.supported_models.FluxSchnell(found)
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(
        comfy.model_management.unet_dtype(device, comfy.utils.calculate_parameters(state)), None
    )
    model = config.get_model(state, "")
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


def load_vae(path):
    """A VAE from a safetensors file, through ComfyUI's own loader."""
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


def _coders() -> tuple:
    """ComfyUI's node classes CLIPTextEncode and VAEDecode."""
    # ComfyUI's module, which the type checker takes for this package.
    from nodes import CLIPTextEncode, VAEDecode  # pyright: ignore[reportAttributeAccessIssue]

    return CLIPTextEncode, VAEDecode


def encode(clip, text: str) -> list:
    """The CONDITIONING of a text by ComfyUI's own CLIP Text Encode."""
    return _coders()[0]().encode(clip, text)[0]


def decode(vae, latent) -> torch.Tensor:
    """The pictures [B,H,W,3] of a LATENT by ComfyUI's own VAE Decode; the frames of a video follow each
    other."""
    return _coders()[1]().decode(vae, latent)[0]
