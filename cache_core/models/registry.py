"""The registry of model families: one row per model class of ComfyUI. A new model needs a row here and no
code.

Specs were read off the loops over the blocks in ComfyUI 0.3.64 to 0.33; tests/comfy/test_families.py
samples a tiny model of every row. Rows of models that ComfyUI has had since then are in `read_rows`."""

from __future__ import annotations

from .block_spec import BlockSpec, Family, SideModule, one, two
from .embedded_rows import EMBEDDED_ROWS
from .read_rows import READ_ROWS

_LDM = "comfy.ldm."
_FLUX = (
    (
        "double_blocks",
        "double",
        two(
            ("img", 0),
            ("txt", 1),
            "img_attn.proj",
            "txt_attn.proj",
            rows=("img_mlp", "txt_mlp"),
            module_streams={"img_attn.proj": "img", "txt_attn.proj": "txt"},
            writes=True,
            adapter="flux_double",
        ),
    ),
    (
        "single_blocks",
        "single",
        one("x", rows="linear2", joined=("txt", "img"), writes=True, fused=True, adapter="flux_single"),
    ),
)
_WAN = (
    (
        "blocks",
        "block",
        one("x", "self_attn", "cross_attn", "audio_cross_attn_wrapper.audio_cross_attn", rows="ffn"),
    ),
)
_IMAGE_TEXT = two(
    ("hidden_states", 0),
    ("encoder_hidden_states", 1),
    "attn",
    rows=("img_mlp", "txt_mlp"),
    gives=("txt", "img"),
)
_COSMOS = one("x_B_T_H_W_D", "self_attn", "cross_attn", "mlp")
_LUMINA = (("layers", "block", one("x", "attention", rows="feed_forward")),)
_REFINERS = (SideModule("noise_refiner"), SideModule("context_refiner"))


def _row(name: str, module: str, model: str, *lists, **rest) -> Family:
    return Family(name, _LDM + module, model, lists, **rest)


FAMILIES = (
    Family("FLUX (embedded)", "demo.flux", "Flux", _FLUX),
    # Blocks of FLUX, or built like them.
    _row("FLUX.2", "flux.model", "Flux", *_FLUX, where=("params.global_modulation", True)),
    _row("FLUX", "flux.model", "Flux", *_FLUX),
    _row("Chroma Radiance", "chroma_radiance.model", "ChromaRadiance", *_FLUX),
    _row("Chroma", "chroma.model", "Chroma", *_FLUX),
    _row(
        "HunyuanVideo",
        "hunyuan_video.model",
        "HunyuanVideo",  # of older versions, where text stands behind the image
        ("double_blocks", "double", two(("img", 0), ("txt", 1), writes=True)),
        ("single_blocks", "single", one(joined=("img", "txt"), writes=True)),
        where=("double_blocks.0.flipped_img_txt", True),
    ),
    _row(
        "HunyuanVideo 1.5",
        "hunyuan_video.model",
        "HunyuanVideo",
        ("double_blocks", "double", two(("img", 0), ("txt", 1), writes=True, probe=("img_attn.qkv", (0,)))),
        where=("params.depth_single_blocks", 0),
    ),
    _row("HunyuanVideo", "hunyuan_video.model", "HunyuanVideo", *_FLUX),
    _row("Hunyuan3D 2", "hunyuan3d.model", "Hunyuan3Dv2", *_FLUX),
    # Video.
    _row(
        "Wan VACE",
        "wan.model",
        "VaceWanModel",
        *_WAN,
        side_modules=(SideModule("vace_blocks", copies=2, chained=True),),
    ),
    _row("Wan S2V", "wan.model", "WanModel_S2V", *_WAN, side_modules=(SideModule("audio_injector"),)),
    _row(
        "Wan Animate",
        "wan.model_animate",
        "AnimateWanModel",
        *_WAN,
        side_modules=(SideModule("face_adapter.fuser_blocks"),),
    ),
    _row(
        "WanDancer",
        "wan.model_wandancer",
        "WanDancerModel",
        *_WAN,
        side_modules=(SideModule("music_injector"),),
    ),
    _row(
        "Wan Animate 2",
        "wan.model_animate2",
        "WanAnimate2Model",
        output_only="it runs its blocks by two functions of theirs, once for the pose and once for the video",
    ),
    _row("Wan", "wan.model", "WanModel", *_WAN),
    _row(
        "MiniMax H3",
        "minimax.model",
        "MiniMaxH3Model",
        ("blocks", "block", one("x", "attn", rows="mlp", batch=None, writes=True)),
        mixed=("audio",),
    ),  # text, sound and picture in one sequence [n,d] of one sample
    _row(
        "SeedVR2",
        "seedvr.model",
        "NaDiT",
        refusal="it restores a video in one step, so there is no step to skip",
    ),
    _row(
        "LTX-2",
        "lightricks.av_model",
        "LTXAVModel",
        (
            "transformer_blocks",
            "block",
            BlockSpec(
                (("img", "x", 0), ("audio", "x", 0)),
                ("img", "audio"),
                ("img", "audio"),
                packed=True,
                writes=True,
                modules=(
                    "attn1",
                    "audio_attn1",
                    "attn2",
                    "audio_attn2",
                    "audio_to_video_attn",
                    "video_to_audio_attn",
                    "ff",
                    "audio_ff",
                ),
                rows={"ff": "img", "audio_ff": "audio"},
                module_streams={
                    "attn1": "img",
                    "audio_attn1": "audio",
                    "attn2": "img",
                    "audio_attn2": "audio",
                    "audio_to_video_attn": "img",
                    "video_to_audio_attn": "audio",
                },
            ),
        ),
    ),
    _row(
        "LTX-Video",
        "lightricks.model",
        "LTXVModel",
        ("transformer_blocks", "block", one("x", "attn1", "attn2", rows="ff", writes=True)),
    ),
    _row(
        "CogVideoX",
        "cogvideo.model",
        "CogVideoXTransformer3DModel",
        ("blocks", "block", two(("hidden_states", 0), ("encoder_hidden_states", 1))),
    ),
    _row(
        "Mochi",
        "genmo.joint_model.asymm_models_joint",
        "AsymmDiTJoint",
        ("blocks", "block", two(("x", 0), ("y", 2), "attn", rows=("mlp_x", "mlp_y"))),
    ),
    _row(
        "Cosmos", "cosmos.model", "GeneralDIT", ("blocks", "block", one(batch=3))
    ),  # tokens lie in T,H,W,B,D
    _row("Cosmos-Predict2", "cosmos.predict2", "MiniTrainDIT", ("blocks", "block", _COSMOS)),
    _row("Anima", "anima.model", "Anima", ("blocks", "block", _COSMOS)),
    _row(
        "Kandinsky 5",
        "kandinsky5.model",
        "Kandinsky5",
        (
            "visual_transformer_blocks",
            "block",
            one("visual_embed", "self_attention", "cross_attention", rows="feed_forward"),
        ),
        side_modules=(SideModule("text_transformer_blocks"),),
    ),
    # Images.
    _row(
        "Qwen-Image",
        "qwen_image.model",
        "QwenImageTransformer2DModel",
        ("transformer_blocks", "block", _IMAGE_TEXT),
    ),
    _row(
        "Mage-Flow",
        "mage_flow.model",
        "MageFlowTransformer2DModel",
        ("transformer_blocks", "block", _IMAGE_TEXT),
    ),
    _row(
        "JoyImage",
        "joyimage.model",
        "JoyImageTransformer3DModel",
        (
            "double_blocks",
            "block",
            two(
                ("hidden_states", 0),
                ("encoder_hidden_states", 1),
                "attn",
                rows=("img_mlp", "txt_mlp"),
            ),
        ),
    ),
    _row("Z-Image (pixel)", "lumina.model", "NextDiTPixelSpace", *_LUMINA, side_modules=_REFINERS),
    _row("Lumina2, Z-Image", "lumina.model", "NextDiT", *_LUMINA, side_modules=_REFINERS),
    _row(
        "HiDream-I1",
        "hidream.model",
        "HiDreamImageTransformer2DModel",
        (
            "double_stream_blocks",
            "double",
            two(
                ("image_tokens", 0),
                ("text_tokens", 2),
                "block.attn1",
                rows=("block.ff_i", "block.ff_t"),
                probe=("block.attn1", (0, 1)),
            ),
        ),
        (
            "single_stream_blocks",
            "single",
            one("image_tokens", "block.attn1", rows="block.ff_i", joined=("img", "txt")),
        ),
    ),
    _row(
        "SD3",
        "modules.diffusionmodules.mmdit",
        "MMDiT",
        (
            "joint_blocks",
            "block",
            two(("x", 1), ("context", 0), gives=("txt", "img"), probe=("x_block.attn.qkv", (0,))),
        ),
    ),
    _row(
        "AuraFlow",
        "aura.mmdit",
        "MMDiT",
        (
            "double_layers",
            "double",
            two(
                ("x", 1),
                ("c", 0),
                "attn",
                rows=("mlpX", "mlpC"),
                gives=("txt", "img"),
                probe=("attn", (0, 1)),
            ),
        ),
        ("single_layers", "single", one("cx", "attn", rows="mlp", joined=("txt", "img"))),
    ),
    _row(
        "PixArt",
        "pixart.pixartms",
        "PixArtMS",
        ("blocks", "block", one("x", "attn", "cross_attn", rows="mlp")),
    ),
    _row(
        "HunyuanDiT",
        "hydit.models",
        "HunYuanDiT",
        ("blocks", "block", one("x", "attn1", "attn2", rows="mlp")),
    ),
    _row(
        "OmniGen2",
        "omnigen.omnigen2",
        "OmniGen2Transformer2DModel",
        ("layers", "block", one("hidden_states", "attn", rows="feed_forward")),
        side_modules=(*_REFINERS, SideModule("ref_image_refiner")),
    ),
    _row(
        "Boogu",
        "boogu.model",
        "BooguTransformer2DModel",
        (
            "double_stream_layers",
            "double",
            two(
                ("img_hidden_states", 0),
                ("instruct_hidden_states", 1),
                "img_instruct_attn",
                "img_self_attn",
                rows=("img_feed_forward", "instruct_feed_forward"),
                module_streams={"img_self_attn": "img"},
                probe=("img_instruct_attn", (1, 0)),
            ),
        ),
        (
            "single_stream_layers",
            "single",
            one("hidden_states", "attn", rows="feed_forward", joined=("txt", "img")),
        ),
        side_modules=(*_REFINERS, SideModule("ref_image_refiner")),
    ),
    _row("Krea 2", "krea2.model", "SingleStreamDiT", ("blocks", "block", one("x", "attn", rows="mlp"))),
    _row(
        "Ideogram 4",
        "ideogram4.model",
        "Ideogram4Transformer",
        ("layers", "block", one("x", "attention", rows="feed_forward")),
    ),
    _row("Lens", "lens.model", "LensTransformer2DModel", ("transformer_blocks", "block", _IMAGE_TEXT)),
    _row(
        "ERNIE-Image",
        "ernie.model",
        "ErnieImageModel",
        ("layers", "block", one("x", "self_attention", rows="mlp")),
    ),
    _row(
        "PixelDiT",
        "pixeldit.model",
        "PixDiT_T2I",
        ("patch_blocks", "patch", two(("x", 0), ("y", 1), writes=True)),
        ("pixel_blocks", "pixel", one(writes=True)),
    ),
    _row(
        "HiDream-O1",
        "hidream_o1.model",
        "HiDreamO1Transformer",
        refusal="it keeps its prefix between calls in a cache of its own",
    ),
    # Sound and shapes.
    _row(
        "ACE-Step",
        "ace.model",
        "ACEStepTransformer2DModel",
        ("transformer_blocks", "block", one("hidden_states", "attn", "cross_attn", "ff")),
    ),  # its MLP is a convolution over tokens
    _row(
        "ACE-Step 1.5",
        "ace.ace_step15",
        "AceStepConditionGenerationModel",
        ("decoder.layers", "block", one("hidden_states", "self_attn", "cross_attn", rows="mlp")),
    ),
    _row(
        "Stable Audio",
        "audio.dit",
        "AudioDiffusionTransformer",
        ("transformer.layers", "block", one("x", "self_attn", "cross_attn", "ff")),
    ),
    _row(
        "TripoSplat",
        "triposplat.model",
        "LatentSeqMMFlowModel",
        ("blocks", "block", one("h", "attn", rows="mlp")),
        side_modules=_REFINERS,
    ),
    _row(
        "MiniMax Music 3",
        "minimax_music.dit",
        "MiniMaxMusic3DiT",
        output_only="it runs its blocks once for every eight seconds of sound",
    ),
    _row(
        "Trellis 2",
        "trellis2.model",
        "Trellis2",
        output_only="it has one transformer for each of its stages, most of them on sparse points",
    ),
    _row(
        "Hunyuan3D 2.1",
        "hunyuan3dv2_1.hunyuandit",
        "HunYuanDiTPlain",
        output_only="it exchanges the halves of a batch on its way",
    ),
    *EMBEDDED_ROWS,
    *READ_ROWS,
)
