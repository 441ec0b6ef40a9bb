"""Adapters of FLUX's blocks: what to capture on a full step and how to rebuild the block from it on a
conservative step.

Attention is inline in these classes and the single block's linears are fused, so re-gating takes a few
explicit lines; everything that is computed afresh runs through the unmodified block or its own MLP, on
gathered rows. Outputs are cached before the gate and re-gated with the current step's modulation, as DuCa and
TaylorSeer do (FLUX branches of ToCa's code)."""

from __future__ import annotations

from typing import Protocol

import torch

from ..base.errors import CacheMismatch
from ..cache.rows import put_rows_, take_rows
from ..models.block_spec import BlockSpec
from ..models.families import Block
from ..selectors.token_selection import value_norm
from .call_context import Call, joined_rows, site_of
from .shims import capture, replayed, with_override


class Adapter(Protocol):
    """What a `BlockSpec.adapter` names.

    names: of the block's positional arguments.
    outputs: (stream, part) of each captured output, or (part,) where it holds all tokens, and the path of its
        module.
    inputs: paths of the modules that read the modulated input, in the order of the joint sequence."""

    names: tuple[str, ...]
    outputs: dict[tuple[str, ...], str]
    inputs: tuple[str, ...]

    @classmethod
    def modulated_input(cls, block: Block, a: dict) -> torch.Tensor:
        """What the block's attention reads, [B,N,d], text first: the cheapest measure of how far the step has
        moved (TeaCache, TAP)."""
        raise NotImplementedError

    @classmethod
    def record(cls, original, block: Block, call: Call, a: dict):
        """Runs the block and keeps its pre-gate module outputs; gives what the block returns."""

    @classmethod
    def conserve(cls, original, block: Block, call: Call, a: dict):
        """Replays the block from its kept outputs, the chosen rows or parts computed afresh."""


def adapter_of(spec: BlockSpec) -> type[Adapter] | None:
    """The adapter of a kind of block, None where its sub-modules are replayed by shims alone."""
    return ADAPTERS[spec.adapter] if spec.adapter else None


def bind(adapter: type[Adapter], args: tuple, kwargs: dict) -> dict:
    """A block's arguments by name."""
    return {**dict(zip(adapter.names, args)), **kwargs}


def _captured(block: Block, outputs: dict):
    """`capture` of the outputs that an adapter names."""
    return capture({key: block.module.get_submodule(path) for key, path in outputs.items()})


def _row_wise_refusal(block, a: dict) -> str | None:
    """Why this call's rows cannot be computed alone, or None."""
    if any(a.get(k) is not None for k in ("modulation_dims", "modulation_dims_img", "modulation_dims_txt")):
        return "the modulation differs between tokens"
    if a.get("attn_mask") is not None:
        return "an attention mask is in use"
    if getattr(block, "flipped_img_txt", False):
        return "image tokens stand before text tokens"
    patches = (a.get("transformer_options") or {}).get("patches", {})
    for name in ("attn1_patch", "attn1_output_patch"):
        if patches.get(name):
            return f"another node patches attention ({name})"
    return None


def _gated(x, out, gate):
    return (out * gate).add_(x)  # rounded as the block's own x + out * gate


def _finite(x):
    return (
        torch.nan_to_num(x, nan=0.0, posinf=65504, neginf=-65504) if x.dtype == torch.float16 else x
    )  # as the blocks do


def _watch_attention(call: Call, block: Block, a: dict) -> dict:
    """transformer_options that keep value norms, and the attention or its keys and values, on a full step."""
    name = block.name

    def watch(attend, q, k, v):
        if call.settings.selector.score != "random":
            call.batch.keep((name, "values"), value_norm(v))
        if call.live:
            # Kept apart from the model's tensors, because refreshed rows are written into them.
            call.batch.keep((name, "k"), k.clone())
            call.batch.keep((name, "v"), v.clone())
        out = attend(q, k, v)
        if not call.live and block.spec.fused:
            call.record((*name, "attn"), out)
        return out

    return with_override(a.get("transformer_options"), watch)


def _live_rows(call: Call, name, rows, a: dict, own: slice = slice(None)) -> dict:
    """transformer_options under which gathered rows attend to all keys and values; those of the rows `own`
    are refreshed."""

    def attend_rows(attend, q, k, v):
        full = []
        for part, fresh in (("k", k), ("v", v)):
            kept = call.batch.kept((name, part))
            if kept is None:
                raise CacheMismatch("Keys and values of a block were not kept; this call runs in full.")
            put_rows_(kept, rows[:, own], fresh[:, :, own], dim=2)
            call.batch.keep((name, part), kept)
            full.append(kept)
        return attend(q, *full)

    return with_override(a.get("transformer_options"), attend_rows)


def _position_rows(pe, rows):
    """Rotary matrices [B or 1, 1, N, ...] of the chosen rows."""
    if pe is None:
        return None
    if rows.shape[0] == 1 or pe.shape[0] > 1:
        return take_rows(pe, rows, dim=2)
    return take_rows(pe.expand(rows.shape[0], *pe.shape[1:]), rows, dim=2)


def _refreshed(call: Call, site, rows, fresh) -> torch.Tensor:
    """A site's value with fresh rows written in; they become its correction."""
    if fresh is None:
        return call.module_value(site)
    return call.batch.refresh(site, fresh, call.settings.modules, rows)


class FluxDouble(Adapter):
    """Double-stream block: text and image with their own weights and joint attention; returns (img, txt)."""

    names = ("img", "txt", "vec", "pe", "attn_mask")
    outputs = {
        ("img", "attn"): "img_attn.proj",
        ("txt", "attn"): "txt_attn.proj",
        ("img", "mlp"): "img_mlp",
        ("txt", "mlp"): "txt_mlp",
    }
    inputs = ("txt_attn.qkv", "img_attn.qkv")

    @classmethod
    def modulation(cls, block, vec):
        if hasattr(block, "img_mod"):
            return block.img_mod(vec), block.txt_mod(vec)
        return vec  # made outside the blocks: FLUX.2, Chroma

    @classmethod
    def modulated_input(cls, block: Block, a: dict) -> torch.Tensor:
        (img, _), (txt, _) = cls.modulation(block.module, a["vec"])
        return torch.cat(
            [
                torch.addcmul(mod.shift, getattr(block.module, f"{stream}_norm1")(a[stream]), 1 + mod.scale)
                for stream, mod in (("txt", txt), ("img", img))
            ],
            1,
        )

    @classmethod
    def record(cls, original, block: Block, call: Call, a: dict):
        refusal = _row_wise_refusal(block.module, a)
        if refusal is not None:
            call.batch.refuse(refusal)
            return original(**a)
        if call.rows:
            a["transformer_options"] = _watch_attention(call, block, a)
        with _captured(block, cls.outputs) as seen:
            out = original(**a)
        for key, value in seen.items():
            call.record(site_of(block.name, key), value)
        return out

    @classmethod
    def conserve(cls, original, block: Block, call: Call, a: dict):
        if parts := call.parts(block.name, block.spec.parts):
            return cls._compute(original, block, call, a, parts)
        module, name, text = block.module, block.name, a["txt"]
        mods = dict(zip(("img", "txt"), cls.modulation(module, a["vec"])))
        rows = {
            "txt": call.choose(name, "txt", text.shape[1], text.device),
            "img": call.choose(name, "img", a["img"].shape[1], text.device, offset=text.shape[1]),
        }
        fresh = cls._live(original, block, call, a, rows) if call.live else {}
        out = {}
        for stream in ("img", "txt"):
            first, second = mods[stream]
            attn, mlp = (stream, "attn"), (stream, "mlp")
            x = _gated(
                a[stream], _refreshed(call, site_of(name, attn), rows[stream], fresh.get(attn)), first.gate
            )
            part = fresh.get(mlp)
            if part is None and (own := rows[stream]) is not None:
                chosen = getattr(module, f"{stream}_norm2")(take_rows(x, own))
                part = getattr(module, f"{stream}_mlp")(torch.addcmul(second.shift, chosen, 1 + second.scale))
            out[stream] = _gated(x, _refreshed(call, site_of(name, mlp), rows[stream], part), second.gate)
        return out["img"], _finite(out["txt"])

    @classmethod
    def _compute(cls, original, block: Block, call: Call, a: dict, parts):
        """The block with the given parts computed on all tokens and the others replayed."""
        if "" in parts or parts >= set(block.spec.parts):
            with _captured(block, cls.outputs) as seen:
                out = original(**a)
            call.correct(block.name, seen)
            return out
        module, name = block.module, block.name
        if "attn" in parts:
            attn, mlp = ({k: v for k, v in cls.outputs.items() if k[1] == part} for part in ("attn", "mlp"))
            kept = {
                module.get_submodule(path): call.module_value(site_of(name, k)) for k, path in mlp.items()
            }
            with replayed(kept), _captured(block, attn) as seen:
                out = original(**a)
            call.correct(name, seen)
            return out
        mods, out = dict(zip(("img", "txt"), cls.modulation(module, a["vec"]))), {}
        for stream in ("img", "txt"):
            first, second = mods[stream]
            x = _gated(a[stream], call.module_value(site_of(name, (stream, "attn"))), first.gate)
            fresh = getattr(module, f"{stream}_mlp")(
                torch.addcmul(second.shift, getattr(module, f"{stream}_norm2")(x), 1 + second.scale)
            )
            call.correct(name, {(stream, "mlp"): fresh})
            out[stream] = _gated(x, fresh, second.gate)
        return out["img"], _finite(out["txt"])

    @classmethod
    def _live(cls, original, block: Block, call: Call, a: dict, rows) -> dict:
        """Pre-gate outputs of the chosen rows, from the unmodified block on those rows against all keys and
        values."""
        img, txt = a["img"], a["txt"]
        if rows["txt"] is None and rows["img"] is None:
            return {}
        # The block needs at least one row of each stream; the result of a row that nobody chose is dropped.
        chosen = {
            s: torch.zeros(1, 1, dtype=torch.long, device=img.device) if r is None else r
            for s, r in rows.items()
        }
        own = slice(1 if rows["txt"] is None else None, -1 if rows["img"] is None else None)
        joint = joined_rows(chosen["txt"], chosen["img"], txt.shape[1])
        streams = {s: take_rows(a[s], r) for s, r in chosen.items()}
        options = _live_rows(call, block.name, joint, a, own)
        with _captured(block, cls.outputs) as seen:
            original(
                **{**a, **streams, "pe": _position_rows(a.get("pe"), joint), "transformer_options": options}
            )
        return {key: value for key, value in seen.items() if rows[key[0]] is not None}


class FluxSingle(Adapter):
    """Single-stream block: parallel attention and MLP over the joint sequence (text first); returns x."""

    names = ("x", "vec", "pe", "attn_mask")
    outputs = {("out",): "linear2"}
    inputs = ("linear1",)

    @classmethod
    def modulation(cls, block, vec):
        return block.modulation(vec)[0] if getattr(block, "modulation", None) else vec

    @classmethod
    def modulated_input(cls, block: Block, a: dict) -> torch.Tensor:
        mod = cls.modulation(block.module, a["vec"])
        return torch.addcmul(mod.shift, block.module.get_submodule("pre_norm")(a["x"]), 1 + mod.scale)

    @classmethod
    def record(cls, original, block: Block, call: Call, a: dict):
        refusal = _row_wise_refusal(block.module, a)
        if refusal is not None:
            call.batch.refuse(refusal)
            return original(**a)
        if call.rows:
            a["transformer_options"] = _watch_attention(call, block, a)
        with _captured(block, cls.outputs) as seen:
            out = original(**a)
        call.record((*block.name, "out"), seen["out",])
        return out

    @classmethod
    def conserve(cls, original, block: Block, call: Call, a: dict):
        """The chosen rows run through the unmodified block with cached or live attention."""
        name = block.name
        if call.parts(name):
            with _captured(block, cls.outputs) as seen:
                out = original(**a)
            call.correct(name, seen)
            return out
        x, n_txt = a["x"], call.n_txt
        rows = call.choose_joint(name, n_txt, x.shape[1] - n_txt, x.device)
        fresh = None
        if rows is not None:
            if call.live:
                options = _live_rows(call, name, rows, a)
            else:
                cached = take_rows(call.module_value((*name, "attn")), rows)
                options = with_override(a.get("transformer_options"), lambda attend, q, k, v: cached)
            row_wise = {
                "x": take_rows(x, rows),
                "pe": _position_rows(a.get("pe"), rows),
                "transformer_options": options,
            }
            with _captured(block, cls.outputs) as seen:
                original(**{**a, **row_wise})
            fresh = seen["out",]
        gate = cls.modulation(block.module, a["vec"]).gate
        return _finite(_gated(x, _refreshed(call, (*name, "out"), rows, fresh), gate))


ADAPTERS: dict[str, type[Adapter]] = {"flux_double": FluxDouble, "flux_single": FluxSingle}
"""By the names in `BlockSpec.adapter`."""
