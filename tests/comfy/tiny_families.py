"""A tiny random model of every row of the registry, as ComfyUI builds it, and the arguments of one of its
calls."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.ldm.audio.dit
import comfy.ldm.chroma.model
import comfy.ldm.chroma_radiance.model
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.model_patcher
import comfy.supported_models
import torch

TEXT = 48  # width of the text tokens
SIGMAS = [1.0, 0.8, 0.8, 0.5, 0.5, 0.0]
PAGES = Path(__file__).resolve().parents[1] / "fixtures" / "families.json"


@dataclass(frozen=True)
class Tiny:
    """One model: its `row` in the registry, ComfyUI's config class and transformer config, the shape of
    its latent and of its text.

    more: further conditions by name, as the shape of random numbers or as a value. other: shape of a latent
        with more frames.
    state: weights that ComfyUI asks for while it builds the model. pair: whether it is called with both
        branches at once only."""

    row: str
    config: str
    unet: dict[str, Any]
    latent: tuple[int, ...]
    text: tuple[int, ...] = (5, TEXT)
    more: dict[str, Any] = field(default_factory=dict)
    other: tuple[int, ...] | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    pair: bool = False


class Random(tuple):
    """The shape of a random tensor, without the batch."""


_FLUX = dict(
    in_channels=16,
    out_channels=16,
    vec_in_dim=32,
    context_in_dim=TEXT,
    hidden_size=64,
    mlp_ratio=4.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[8, 12, 12],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
    txt_ids_dims=[],
)
_CHROMA = dict(
    in_channels=64,
    out_channels=64,
    context_in_dim=TEXT,
    hidden_size=32,
    mlp_ratio=2.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[4, 6, 6],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    in_dim=64,
    out_dim=32,
    hidden_dim=32,
    n_layers=2,
    txt_ids_dims=[],
    vec_in_dim=None,
)
_RADIANCE = dict(
    nerf_hidden_size=16,
    nerf_mlp_ratio=4,
    nerf_depth=2,
    nerf_max_freqs=8,
    nerf_tile_size=512,
    nerf_final_head_type="conv",
    nerf_embedder_dtype=torch.float32,
    use_x0=False,
    use_sequential_txt_ids=False,
)
_HUNYUAN = dict(
    in_channels=16,
    out_channels=16,
    vec_in_dim=32,
    context_in_dim=TEXT,
    hidden_size=64,
    mlp_ratio=4.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[8, 12, 12],
    theta=256,
    patch_size=[1, 2, 2],
    qkv_bias=True,
    guidance_embed=True,
    byt5=False,
    meanflow=False,
    use_cond_type_embedding=False,
    vision_in_dim=None,
    meanflow_sum=False,
)
_WAN = dict(dim=48, ffn_dim=96, num_heads=2, num_layers=6, in_dim=16, out_dim=16, text_dim=TEXT, freq_dim=64)
_QWEN = dict(
    in_channels=64,
    num_layers=2,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=TEXT,
    axes_dims_rope=(8, 12, 12),
)
_LUMINA = dict(patch_size=2, in_channels=16, cap_feat_dim=TEXT, n_layers=2, qk_norm=True)
_COSMOS = dict(
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    concat_padding_mask=True,
    pos_emb_cls="rope3d",
    pos_emb_interpolation="crop",
    use_adaln_lora=True,
    adaln_lora_dim=16,
    num_blocks=2,
    num_heads=2,
    model_channels=128,
)
_PREDICT2 = dict(
    _COSMOS,
    crossattn_emb_channels=TEXT,
    pos_emb_learnable=True,
    min_fps=1,
    max_fps=30,
    extra_per_block_abs_pos_emb=False,
    rope_enable_fps_modulation=False,
)
_LTX2 = dict(
    image_model="ltxav",
    in_channels=128,
    audio_in_channels=128,
    cross_attention_dim=64,
    audio_cross_attention_dim=32,
    attention_head_dim=32,
    audio_attention_head_dim=16,
    num_attention_heads=2,
    audio_num_attention_heads=2,
    caption_channels=TEXT,
    num_layers=2,
    connector_attention_head_dim=8,
    connector_num_attention_heads=2,
    connector_num_layers=1,
)
_H3 = dict(
    image_model="minimax_h3",
    hidden_size=64,
    num_layers=2,
    token_refiner_num_layers=1,
    num_attention_heads=2,
    attention_head_dim=32,
    ffn_hidden_size=96,
    text_dim=TEXT,
    timestep_input_dim=32,
    time_embed_hidden_size=32,
    time_embed_dim=32,
    rope_inv_freq_len=4,
)
_SD3 = dict(
    input_size=None,
    in_channels=16,
    out_channels=16,
    patch_size=2,
    depth=2,
    adm_in_channels=32,
    num_patches=64,
    pos_embed_max_size=8,
    context_embedder_config={
        "target": "torch.nn.Linear",
        "params": {"in_features": TEXT, "out_features": 128},
    },
    pos_embed_scaling_factor=None,
    qk_norm="rms",
    x_block_self_attn_layers=[0],
)
_OMNIGEN = dict(
    axes_dim_rope=[8, 12, 12],
    axes_lens=[1024, 1664, 1664],
    ffn_dim_multiplier=None,
    hidden_size=64,
    in_channels=16,
    multiple_of=32,
    norm_eps=1e-5,
    num_attention_heads=2,
    num_kv_heads=1,
    num_layers=2,
    num_refiner_layers=1,
    out_channels=None,
    patch_size=2,
    text_feat_dim=TEXT,
    timestep_scale=1000.0,
)
_ACE = dict(
    attention_head_dim=32,
    in_channels=8,
    inner_dim=64,
    max_height=16,
    max_position=32768,
    max_width=32768,
    mlp_ratio=2.5,
    num_attention_heads=2,
    num_layers=2,
    out_channels=8,
    patch_size=[16, 1],
    rope_theta=1e6,
    speaker_embedding_dim=16,
    text_embedding_dim=TEXT,
    ssl_encoder_depths=[8, 8],
    ssl_latent_dims=[16, 16],
    ssl_names=["mert", "m-hubert"],
    lyric_encoder_vocab_size=64,
    lyric_hidden_size=1024,
)
_ACE15 = dict(
    hidden_size=64,
    text_hidden_dim=TEXT,
    num_dit_layers=2,
    num_lyric_layers=1,
    num_timbre_layers=1,
    num_tokenizer_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    intermediate_size=128,
    encoder_hidden_size=512,
    encoder_intermediate_size=128,
    encoder_num_heads=2,
    fsq_dim=512,
)
_SECONDS = {
    f"conditioner.conditioners.{name}.embedder.embedding.{weight}": torch.zeros(shape)
    for name in ("seconds_start", "seconds_total")
    for weight, shape in (("0.weights", 128), ("1.weight", (768, 257)), ("1.bias", 768))
}
_VIDEO, _LONGER = (16, 2, 8, 8), (16, 3, 8, 8)
_POOLED, _GUIDED = {"y": Random((32,))}, {"y": Random((32,)), "guidance": 3.5}

TINY = {
    "flux": Tiny("FLUX", "Flux", dict(image_model="flux", **_FLUX), (16, 8, 8), more=_GUIDED),
    "flux kontext": Tiny(
        "FLUX",
        "Flux",
        dict(image_model="flux", **_FLUX),
        (16, 8, 8),
        more={**_GUIDED, "ref_latents": [Random((16, 8, 8))]},
    ),
    "flux 2": Tiny(
        "FLUX.2",
        "Flux2",
        dict(
            image_model="flux2",
            in_channels=128,
            out_channels=128,
            vec_in_dim=None,
            context_in_dim=TEXT,
            hidden_size=64,
            mlp_ratio=3.0,
            num_heads=2,
            depth=2,
            depth_single_blocks=2,
            axes_dim=[8, 8, 8, 8],
            theta=2000,
            patch_size=1,
            qkv_bias=False,
            guidance_embed=True,
            txt_ids_dims=[3],
            global_modulation=True,
            mlp_silu_act=True,
            ops_bias=False,
            default_ref_method="index",
            ref_index_scale=10.0,
        ),
        (128, 6, 6),
        more={"guidance": 3.5},
    ),
    "chroma": Tiny(
        "Chroma", "Chroma", dict(image_model="chroma", **_CHROMA), (16, 8, 8), more={"guidance": 0.0}
    ),
    "chroma radiance": Tiny(
        "Chroma Radiance",
        "ChromaRadiance",
        dict(
            image_model="chroma_radiance",
            **{**_CHROMA, **_RADIANCE, "in_channels": 3, "out_channels": 3, "patch_size": 16},
        ),
        (3, 64, 64),
        more={"guidance": 0.0},
    ),
    "hunyuan video": Tiny(
        "HunyuanVideo",
        "HunyuanVideo",
        dict(image_model="hunyuan_video", **_HUNYUAN),
        _VIDEO,
        more=_GUIDED,
        other=_LONGER,
    ),
    "hunyuan video 1.5": Tiny(
        "HunyuanVideo 1.5",
        "HunyuanVideo15",
        dict(
            image_model="hunyuan_video",
            **{
                **_HUNYUAN,
                "depth_single_blocks": 0,
                "guidance_embed": False,
                "vec_in_dim": None,
                "patch_size": [1, 1, 1],
                "use_cond_type_embedding": True,
                "vision_in_dim": 40,
            },
        ),
        (16, 2, 4, 4),
        other=(16, 3, 4, 4),
    ),
    "hunyuan 3d 2": Tiny(
        "Hunyuan3D 2",
        "Hunyuan3Dv2",
        dict(
            image_model="hunyuan3d2",
            in_channels=64,
            context_in_dim=TEXT,
            hidden_size=64,
            mlp_ratio=4.0,
            num_heads=2,
            depth=2,
            depth_single_blocks=2,
            qkv_bias=True,
            guidance_embed=False,
        ),
        (64, 16),
    ),
    "wan": Tiny(
        "Wan", "WAN21_T2V", dict(image_model="wan2.1", model_type="t2v", **_WAN), _VIDEO, other=_LONGER
    ),
    "wan i2v": Tiny(
        "Wan",
        "WAN21_I2V",
        dict(image_model="wan2.1", model_type="i2v", **{**_WAN, "in_dim": 36}),
        _VIDEO,
        more={"c_concat": Random((20, 2, 8, 8)), "clip_fea": Random((257, 1280))},
    ),
    "wan vace": Tiny(
        "Wan VACE",
        "WAN21_Vace",
        dict(image_model="wan2.1", model_type="vace", vace_layers=3, vace_in_dim=96, **_WAN),
        _VIDEO,
        more={"vace_context": Random((1, 96, 2, 8, 8)), "vace_strength": [0.7]},
    ),
    "wan camera": Tiny(
        "Wan",
        "WAN22_Camera",
        dict(image_model="wan2.1", model_type="camera_2.2", **_WAN),
        _VIDEO,
        other=_LONGER,
    ),
    "wan animate": Tiny(
        "Wan Animate",
        "WAN22_Animate",
        dict(image_model="wan2.1", model_type="animate", **{**_WAN, "num_layers": 10}),
        _VIDEO,
    ),
    "wan humo": Tiny("Wan", "WAN21_HuMo", dict(image_model="wan2.1", model_type="humo", **_WAN), _VIDEO),
    "wan s2v": Tiny("Wan S2V", "WAN22_S2V", dict(image_model="wan2.1", model_type="s2v", **_WAN), _VIDEO),
    "wan scail": Tiny("Wan", "WAN21_SCAIL", dict(image_model="wan2.1", model_type="scail", **_WAN), _VIDEO),
    "wan scail 2": Tiny(
        "Wan", "WAN21_SCAIL2", dict(image_model="wan2.1", model_type="scail2", **_WAN), _VIDEO
    ),
    "wan self forcing": Tiny(
        "Wan", "WAN21_CausalAR_T2V", dict(image_model="wan2.1", model_type="t2v", **_WAN), _VIDEO
    ),
    "wan dancer": Tiny(
        "WanDancer", "WAN22_WanDancer", dict(image_model="wan2.1", model_type="wandancer", **_WAN), _VIDEO
    ),
    "wan 2.2 5b": Tiny(
        "Wan",
        "WAN22_T2V",
        dict(image_model="wan2.1", model_type="t2v", **{**_WAN, "in_dim": 48, "out_dim": 48}),
        (48, 2, 8, 8),
        other=(48, 3, 8, 8),
    ),
    "qwen image": Tiny("Qwen-Image", "QwenImage", dict(image_model="qwen_image", **_QWEN), (16, 1, 8, 8)),
    "qwen image edit": Tiny(
        "Qwen-Image",
        "QwenImage",
        dict(image_model="qwen_image", **_QWEN),
        (16, 1, 8, 8),
        more={"ref_latents": [Random((16, 1, 8, 8))]},
    ),
    "lumina 2": Tiny(
        "Lumina2, Z-Image",
        "Lumina2",
        dict(
            image_model="lumina2",
            **_LUMINA,
            dim=96,
            n_heads=2,
            n_kv_heads=1,
            axes_dims=[16, 16, 16],
            axes_lens=[300, 512, 512],
            ffn_dim_multiplier=4.0,
        ),
        (16, 8, 8),
        more={"num_tokens": 5},
    ),
    "z-image": Tiny(
        "Lumina2, Z-Image",
        "ZImage",
        dict(
            image_model="lumina2",
            **_LUMINA,
            dim=256,
            n_heads=4,
            n_kv_heads=4,
            axes_dims=[16, 24, 24],
            axes_lens=[1536, 512, 512],
            rope_theta=256.0,
            ffn_dim_multiplier=1.0,
            z_image_modulation=True,
            time_scale=1000.0,
            pad_tokens_multiple=32,
        ),
        (16, 8, 8),
        more={"num_tokens": 5},
    ),
    "z-image pixel": Tiny(
        "Z-Image (pixel)",
        "ZImagePixelSpace",
        dict(
            image_model="zimage_pixel",
            **{**_LUMINA, "patch_size": 16, "in_channels": 3},
            dim=256,
            n_heads=4,
            n_kv_heads=4,
            axes_dims=[16, 24, 24],
            axes_lens=[1536, 512, 512],
            rope_theta=256.0,
            ffn_dim_multiplier=1.0,
            z_image_modulation=True,
            time_scale=1000.0,
            pad_tokens_multiple=32,
            decoder_hidden_size=32,
            decoder_num_res_blocks=1,
        ),
        (3, 64, 64),
        more={"num_tokens": 5},
    ),
    "hidream i1": Tiny(
        "HiDream-I1",
        "HiDream",
        dict(
            image_model="hidream",
            attention_head_dim=32,
            axes_dims_rope=[8, 12, 12],
            caption_channels=[TEXT, TEXT],
            max_resolution=[128, 128],
            in_channels=16,
            llama_layers=[0, 1, 2, 3],
            num_attention_heads=2,
            num_routed_experts=2,
            num_activated_experts=1,
            num_layers=2,
            num_single_layers=2,
            out_channels=16,
            patch_size=2,
            text_emb_dim=32,
        ),
        (16, 8, 8),
        more={**_POOLED, "encoder_hidden_states_llama3": Random((4, 6, TEXT))},
    ),
    "cosmos": Tiny(
        "Cosmos",
        "CosmosT2V",
        dict(
            image_model="cosmos",
            **_COSMOS,
            block_config="FA-CA-MLP",
            pos_emb_learnable=False,
            block_x_format="THWBD",
            affline_emb_norm=True,
            extra_per_block_abs_pos_emb=True,
            extra_per_block_abs_pos_emb_type="learnable",
            crossattn_emb_channels=TEXT,
        ),
        _VIDEO,
        other=_LONGER,
    ),
    "cosmos predict 2": Tiny(
        "Cosmos-Predict2",
        "CosmosT2IPredict2",
        dict(image_model="cosmos_predict2", **_PREDICT2),
        (16, 1, 8, 8),
        other=(16, 2, 8, 8),
    ),
    "anima": Tiny("Anima", "Anima", dict(image_model="anima", **_PREDICT2), (16, 1, 8, 8)),
    "ltx video": Tiny(
        "LTX-Video",
        "LTXV",
        dict(
            image_model="ltxv",
            in_channels=128,
            cross_attention_dim=64,
            attention_head_dim=32,
            num_attention_heads=2,
            caption_channels=TEXT,
            num_layers=2,
        ),
        (128, 2, 4, 4),
        more={"attention_mask": None, "frame_rate": 25},
        other=(128, 3, 4, 4),
    ),
    "ltx 2": Tiny(
        "LTX-2",
        "LTXAV",
        _LTX2,
        (1, 128 * 2 * 4 * 4 + 8 * 4 * 16),
        (5, 2 * TEXT),
        more={"attention_mask": None, "latent_shapes": [(1, 128, 2, 4, 4), (1, 8, 4, 16)]},
    ),
    "ltx 2 without sound": Tiny(
        "LTX-2",
        "LTXAV",
        _LTX2,
        (128, 2, 4, 4),
        (5, 2 * TEXT),
        more={"attention_mask": None, "latent_shapes": [(1, 128, 2, 4, 4)]},
    ),
    "mochi": Tiny(
        "Mochi",
        "GenmoMochi",
        dict(
            image_model="mochi_preview",
            patch_size=2,
            in_channels=12,
            hidden_size_x=96,
            hidden_size_y=48,
            depth=2,
            num_heads=2,
            mlp_ratio_x=128.0,
            mlp_ratio_y=128.0,
            use_t5=True,
            t5_feat_dim=TEXT,
            t5_token_length=5,
            learn_sigma=False,
            qk_norm=True,
            qkv_bias=False,
            out_bias=True,
            rope_theta=10000.0,
        ),
        (12, 2, 8, 8),
        more={"attention_mask": torch.ones(1, 5), "num_tokens": 5},
        other=(12, 3, 8, 8),
    ),
    "sd 3.5": Tiny("SD3", "SD3", _SD3, (16, 8, 8), more=_POOLED),
    "auraflow": Tiny(
        "AuraFlow",
        "AuraFlow",
        dict(
            in_channels=4,
            out_channels=4,
            dim=64,
            n_layers=4,
            n_double_layers=2,
            n_heads=2,
            global_conddim=64,
            cond_seq_dim=TEXT,
            max_seq=64,
        ),
        (4, 8, 8),
    ),
    "pixart": Tiny(
        "PixArt",
        "PixArtSigma",
        dict(
            image_model="pixart_sigma",
            num_heads=2,
            patch_size=2,
            hidden_size=96,
            in_channels=4,
            depth=2,
            caption_channels=TEXT,
            model_max_length=300,
            micro_condition=False,
            pe_interpolation=2,
            input_size=128,
        ),
        (4, 64, 64),
    ),
    "hunyuan dit": Tiny(
        "HunyuanDiT",
        "HunyuanDiT",
        dict(
            image_model="hydit",
            depth=4,
            hidden_size=64,
            num_heads=2,
            text_states_dim=TEXT,
            text_states_dim_t5=64,
        ),
        (4, 8, 8),
        (77, TEXT),
        more={
            "text_embedding_mask": torch.ones(1, 77),
            "encoder_hidden_states_t5": Random((256, 64)),
            "text_embedding_mask_t5": torch.ones(1, 256),
        },
    ),
    "omnigen 2": Tiny(
        "OmniGen2", "Omnigen2", dict(image_model="omnigen2", **_OMNIGEN), (16, 8, 8), more={"num_tokens": 5}
    ),
    "boogu": Tiny(
        "Boogu",
        "Boogu",
        dict(
            image_model="boogu",
            hidden_size=64,
            num_layers=2,
            num_double_stream_layers=2,
            num_refiner_layers=1,
            instruction_feat_dim=TEXT,
            num_attention_heads=2,
            num_kv_heads=1,
            axes_dim_rope=(8, 12, 12),
            multiple_of=32,
        ),
        (16, 8, 8),
        more={"num_tokens": 5},
    ),
    "kandinsky 5": Tiny(
        "Kandinsky 5",
        "Kandinsky5",
        dict(
            image_model="kandinsky5",
            model_dim=128,
            axes_dims=(16, 24, 24),
            time_dim=32,
            ff_dim=128,
            visual_embed_dim=64,
            num_text_blocks=1,
            num_visual_blocks=2,
            in_text_dim=TEXT,
            in_text_dim2=32,
        ),
        _VIDEO,
        more=_POOLED,
        other=_LONGER,
    ),
    "cogvideox": Tiny(
        "CogVideoX",
        "CogVideoX_T2V",
        dict(
            image_model="cogvideox",
            num_attention_heads=1,
            attention_head_dim=64,
            in_channels=16,
            time_embed_dim=32,
            text_embed_dim=TEXT,
            num_layers=2,
            use_rotary_positional_embeddings=True,
            patch_size=2,
        ),
        _VIDEO,
        other=_LONGER,
    ),
    "krea 2": Tiny(
        "Krea 2",
        "Krea2",
        dict(
            image_model="krea2",
            features=64,
            heads=2,
            kvheads=1,
            layers=2,
            channels=16,
            patch=2,
            txtdim=40,
            txtlayers=3,
            txtheads=2,
            txtkvheads=2,
        ),
        (16, 8, 8),
        (5, 120),
    ),
    "ideogram 4": Tiny(
        "Ideogram 4",
        "Ideogram4",
        dict(
            image_model="ideogram4",
            in_channels=128,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=32,
            intermediate_size=128,
            adaln_dim=32,
            llm_features_dim=TEXT,
            mrope_section=(4, 6, 6),
        ),
        (128, 6, 6),
    ),
    "lens": Tiny(
        "Lens",
        "Lens",
        dict(
            image_model="lens",
            in_channels=128,
            out_channels=32,
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            enc_hidden_dim=16,
            axes_dims_rope=(8, 12, 12),
            multi_layer_encoder_feature=True,
            selected_layer_index=(0, 1, 2),
        ),
        (128, 6, 6),
    ),
    "ernie image": Tiny(
        "ERNIE-Image",
        "ErnieImage",
        dict(
            image_model="ernie",
            hidden_size=64,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=128,
            in_channels=128,
            out_channels=128,
            text_in_dim=TEXT,
            rope_axes_dim=(8, 12, 12),
        ),
        (128, 6, 6),
    ),
    "pixeldit": Tiny(
        "PixelDiT",
        "PixelDiTT2I",
        dict(
            image_model="pixeldit_t2i",
            num_groups=2,
            hidden_size=64,
            pixel_hidden_size=16,
            pixel_attn_hidden_size=64,
            pixel_num_groups=2,
            patch_depth=2,
            pixel_depth=2,
            txt_embed_dim=TEXT,
        ),
        (3, 64, 64),
    ),
    "pid": Tiny(
        "PixelDiT",
        "PiD",
        dict(
            image_model="pid",
            num_groups=2,
            hidden_size=64,
            pixel_hidden_size=16,
            pixel_attn_hidden_size=64,
            pixel_num_groups=2,
            patch_depth=2,
            pixel_depth=2,
            txt_embed_dim=TEXT,
            lq_hidden_dim=16,
            lq_num_res_blocks=1,
        ),
        (3, 64, 64),
        more={"lq_latent": Random((16, 2, 2)), "degrade_sigma": torch.zeros(1)},
    ),
    "ace-step": Tiny(
        "ACE-Step",
        "ACEStep",
        dict(audio_model="ace", **_ACE),
        (8, 16, 24),
        more={"speaker_embeds": Random((16,)), "lyric_token_idx": torch.zeros(1, 4, dtype=torch.long)},
    ),
    "ace-step 1.5": Tiny(
        "ACE-Step 1.5",
        "ACEStep15",
        dict(audio_model="ace1.5", **_ACE15),
        (64, 20),
        more={"lyric_embed": Random((4, TEXT)), "refer_audio": Random((64, 20))},
    ),
    "stable audio": Tiny(
        "Stable Audio",
        "StableAudio",
        dict(
            audio_model="dit1.0",
            global_cond_dim=64,
            embed_dim=64,
            project_cond_tokens=False,
            num_heads=2,
            io_channels=64,
            cond_token_dim=64,
            depth=2,
            timestep_features_type="learned",
            input_concat_dim=0,
        ),
        (64, 16),
        (5, 64),
        more={"global_embed": Random((64,))},
        state=_SECONDS,
    ),
    "triposplat": Tiny(
        "TripoSplat",
        "TripoSplat",
        dict(
            image_model="triposplat",
            q_token_length=32,
            in_channels=16,
            model_channels=64,
            cond_channels=TEXT,
            out_channels=16,
            num_blocks=2,
            num_refiner_blocks=1,
            num_head_channels=32,
            cam_channels=5,
            cond2_channels=None,
        ),
        (1, 32 * 16 + 5),
        more={"latent_shapes": [(1, 32, 16), (1, 1, 5)]},
    ),
    "minimax h3": Tiny(
        "MiniMax H3",
        "MiniMaxH3",
        _H3,
        (1, 24 * 2 * 4 * 4 + 32 * 2 * 6),
        (5, 64),
        more={
            "latent_shapes": [(1, 24, 2, 4, 4), (1, 32, 2, 6)],
            "minimax_payload": {"audio_scale": 4.0, "seed": 0},
        },
    ),
    "minimax music 3": Tiny(
        "MiniMax Music 3",
        "MiniMaxMusic3",
        dict(audio_model="minimax_music3"),
        (128, 20),
        (6, 8 * 4096),
        more={"conditioning_scale": torch.ones(1, 1, 1)},
    ),
    "wan animate 2": Tiny(
        "Wan Animate 2",
        "WAN_Animate2",
        dict(image_model="wan2.1", model_type="animate2", **{**_WAN, "in_dim": 36}),
        (16, 3, 8, 8),
        more={"c_concat": Random((20, 3, 8, 8)), "pose_latents": Random((16, 2, 8, 8))},
    ),
    "mage flow": Tiny(
        "Mage-Flow",
        "MageFlow",
        dict(
            image_model="mage_flow",
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=TEXT,
            axes_dims_rope=(8, 12, 12),
        ),
        (128, 4, 4),
    ),
    "joyimage": Tiny(
        "JoyImage",
        "JoyImage",
        dict(
            image_model="joyimage",
            hidden_size=64,
            num_attention_heads=2,
            text_dim=TEXT,
            num_layers=2,
            rope_dim_list=[8, 12, 12],
            theta=10000,
        ),
        (16, 1, 8, 8),
    ),
    "trellis 2": Tiny(
        "Trellis 2",
        "Trellis2",
        dict(
            image_model="trellis2",
            resolution=32,
            model_channels=24,
            cond_channels=TEXT,
            num_blocks=2,
            num_heads=2,
            mlp_ratio=2.0,
        ),
        (32, 16, 16, 16),
        more={"embeds": Random((5, TEXT))},
    ),
    "hunyuan 3d 2.1": Tiny(
        "Hunyuan3D 2.1",
        "Hunyuan3Dv2_1",
        dict(
            image_model="hunyuan3d2_1",
            in_channels=64,
            context_dim=TEXT,
            hidden_size=64,
            mlp_ratio=4.0,
            num_heads=2,
            depth=5,
            qkv_bias=False,
            guidance_cond_proj_dim=None,
            num_moe_layers=2,
            num_experts=2,
            moe_top_k=1,
        ),
        (64, 16),
        pair=True,
    ),
}


ONE_BY_ONE = ("ace-step 1.5", "minimax h3")
"""Models that give another result for two branches in one call in ComfyUI itself, or take one only."""


def present() -> list[str]:
    """Names in TINY that this ComfyUI has."""
    return [name for name, tiny in TINY.items() if hasattr(comfy.supported_models, tiny.config)]


def _known(unet: dict) -> dict:
    """A transformer's config without what older versions do not know."""
    params = {
        "flux": comfy.ldm.flux.model.FluxParams,
        "hunyuan_video": comfy.ldm.hunyuan_video.model.HunyuanVideoParams,
        "chroma": comfy.ldm.chroma.model.ChromaParams,
        "chroma_radiance": comfy.ldm.chroma_radiance.model.ChromaRadianceParams,
    }.get(unet.get("image_model"))
    if params is not None:
        return {k: v for k, v in unet.items() if k in params.__dataclass_fields__ or k == "image_model"}
    newer = {"timestep_features_type"} - set(
        inspect.signature(comfy.ldm.audio.dit.AudioDiffusionTransformer).parameters
    )
    return {k: v for k, v in unet.items() if k not in newer}


@contextmanager
def fewer_layers(few: bool):
    """Inside it MiniMax Music 3, whose sizes no config changes, is built with two layers of small MLPs."""
    if not few:
        yield
        return
    from comfy.ldm.minimax_music import dit

    original, made = dit.TransformerBlock, []

    def block(dim, dim_heads, inner_dim, *args):
        if len(made) < 2:
            made.append(original(dim, dim_heads, 64, *args))
            return made[-1]
        return torch.nn.Identity()

    dit.TransformerBlock = block
    try:
        yield
    finally:
        dit.TransformerBlock = original


def build(name: str, fill, seed: int = 0):
    """A ModelPatcher with a random float32 model."""
    tiny = TINY[name]
    unet = _known(tiny.unet)
    config = getattr(comfy.supported_models, tiny.config)(dict(unet))
    config.set_inference_dtype(torch.float32, None)
    # What a config class sets for the large models gives way to the tiny one's.
    config.unet_config.update(unet)
    few = unet.get("audio_model") == "minimax_music3"
    with fewer_layers(few):
        base = config.get_model(tiny.state, "")
    if few:
        layers = base.diffusion_model.diffusion_transformer.transformer
        layers.layers = layers.layers[:2]
    fill(base.diffusion_model.eval(), seed)
    patcher = comfy.model_patcher.ModelPatcher(
        base, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )
    base.current_patcher = patcher
    return patcher


def arguments(name: str, seed: int = 0, batch: int = 1, other: bool = False) -> dict:
    """Latent, text and conditions of a call of `apply_model`, from a seed; both branches of a pair have one
    latent. Latents of two seeds have a cosine of about 0.64, as those of successive steps: latents without
    anything in common would end caching (`indicators.guard`)."""
    tiny, g = TINY[name], torch.Generator().manual_seed(seed)

    def made(value):
        if isinstance(value, Random):
            return torch.randn(batch, *value, generator=g)
        if isinstance(value, torch.Tensor):
            return value.expand(batch, *value.shape[1:])
        if isinstance(value, list) and value and isinstance(value[0], Random):
            return [made(v) for v in value]
        return torch.full((batch,), value) if name_of == "guidance" else value

    batch = 2 if tiny.pair else batch
    size = tiny.other if other else tiny.latent
    common = torch.randn(1, *size, generator=torch.Generator().manual_seed(10_000))
    out = {
        "x": 0.8 * common + 0.6 * torch.randn(batch, *size, generator=g),
        "c_crossattn": torch.randn(batch, *tiny.text, generator=g),
    }
    for name_of, value in tiny.more.items():
        out[name_of] = made(value)
    if tiny.pair:
        out["x"] = out["x"][:1].repeat(2, 1, 1)
    return out


def call(base, sigma, data, options=None, branches=None):
    """One call of the model; without options a plain one."""
    data, batch = dict(data), len(data["x"])
    branches = branches or ([(1, "u"), (0, "c")] if batch == 2 else [(0, "c")])
    options = {
        **(options or {}),
        "sample_sigmas": torch.tensor(SIGMAS),
        "sigmas": torch.full((batch,), sigma),
        "cond_or_uncond": [c for c, _ in branches],
        "uuids": [u for _, u in branches],
    }
    return base.apply_model(data.pop("x"), torch.full((batch,), sigma), transformer_options=options, **data)


def close(a, b, limit=1e-5) -> bool:
    """Whether two results differ by rounding alone."""
    return float((a - b).abs().max()) <= limit * float(b.abs().max())


def left_behind(base) -> list[str]:
    return [name for name, m in base.named_modules() if "forward" in m.__dict__]


def joined(a, b) -> dict:
    """The arguments of a call with both branches in one batch."""
    return {k: both(v, b[k]) for k, v in a.items()}


def both(a, b):
    if isinstance(a, torch.Tensor):
        return torch.cat([a, b])
    if isinstance(a, list) and a and isinstance(a[0], torch.Tensor):
        return [both(x, y) for x, y in zip(a, b)]
    return a
