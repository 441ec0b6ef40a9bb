"""FLUX's blocks: what to capture on a full step and how to rebuild them from it on a conservative step.

Attention is inline in these classes and the single block's linears are fused, so re-gating takes a few
explicit lines; everything that is computed afresh runs through the unmodified block or its own MLP, on
gathered rows. Outputs are cached before the gate and re-gated with the current step's modulation, as DuCa and
TaylorSeer do (algorithm notes: FLUX branches of ToCa)."""

from __future__ import annotations

import torch

from ..cache.rows import put_rows_, take_rows
from ..selectors.token_selection import value_norm
from .call_context import Call
from .shims import capture, replayed, with_override


def _bound(names, args, kwargs) -> dict:
    return {**dict(zip(names, args)), **kwargs}


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


def _watch_attention(call: Call, name, a: dict) -> dict:
    """transformer_options that note value norms, and the attention or its keys and values, on a full step."""

    def watch(attend, q, k, v):
        if call.settings.selector.score != "random":
            call.batch.keep((name, "values"), value_norm(v))
        if call.live:
            # Kept apart from the model's tensors, because refreshed rows are written into them.
            call.batch.keep((name, "k"), k.clone())
            call.batch.keep((name, "v"), v.clone())
        out = attend(q, k, v)
        if not call.live and name[0] == "single":
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
            put_rows_(kept, rows[:, own], fresh[:, :, own], dim=2)
            call.batch.keep((name, part), kept)
            full.append(kept)
        return attend(q, *full)

    return with_override(a.get("transformer_options"), attend_rows)


def _join(first, second, offset):
    """Rows of the joint sequence from rows of text and of image, either of which may be None."""
    parts = [p for p in (first, None if second is None else second + offset) if p is not None]
    if not parts:
        return None
    b = max(p.shape[0] for p in parts)
    return torch.cat([p.expand(b, -1) for p in parts], 1)


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
    call.batch.correct(site, fresh, call.settings.modules, rows)
    return put_rows_(call.module_value(site, owned=True), rows, fresh)


class FluxDouble:
    """Double-stream block: text and image with their own weights and joint attention; returns (img, txt)."""

    names = ("img", "txt", "vec", "pe", "attn_mask")
    outputs = {
        "img_attn": "img_attn.proj",
        "txt_attn": "txt_attn.proj",
        "img_mlp": "img_mlp",
        "txt_mlp": "txt_mlp",
    }
    inputs = ("txt_attn.qkv", "img_attn.qkv")
    """What reads the modulated input, text first."""
    parts = ("attn", "mlp")
    """What a mask may name of a block beside the whole."""

    @classmethod
    def skip(cls, a):
        return a["img"], a["txt"]

    @classmethod
    def bind(cls, args, kwargs):
        return _bound(cls.names, args, kwargs)

    @classmethod
    def modulation(cls, block, vec):
        if hasattr(block, "img_mod"):
            return block.img_mod(vec), block.txt_mod(vec)
        return vec  # made outside the blocks: FLUX.2, Chroma

    @classmethod
    def modulated_input(cls, block, a) -> torch.Tensor:
        """What the block's attention reads, [B,N,d], text first: the cheapest look at how far the step has
        moved (TeaCache, TAP)."""
        (img, _), (txt, _) = cls.modulation(block, a["vec"])
        return torch.cat(
            [
                torch.addcmul(mod.shift, norm(a[stream]), 1 + mod.scale)
                for stream, mod, norm in (("txt", txt, block.txt_norm1), ("img", img, block.img_norm1))
            ],
            1,
        )

    @classmethod
    def record(cls, original, block, name, call: Call, a: dict):
        """Runs the block and captures its pre-gate module outputs."""
        refusal = _row_wise_refusal(block, a)
        if refusal is not None:
            call.batch.refuse(refusal)
            return original(**a)
        if call.rows:
            a["transformer_options"] = _watch_attention(call, name, a)
        with capture({k: block.get_submodule(path) for k, path in cls.outputs.items()}) as seen:
            out = original(**a)
        for key, value in seen.items():
            call.record((*name, key), value)
        return out

    @classmethod
    def conserve(cls, original, block, name, call: Call, a: dict):
        """Replays the block from its captured outputs, the chosen rows of its MLPs (and attention, if live)
        computed afresh."""
        if parts := call.parts(name, cls.parts):
            return cls._compute(original, block, name, call, a, parts)
        img, txt = a["img"], a["txt"]
        mods = dict(zip(("img", "txt"), cls.modulation(block, a["vec"])))
        rows = {
            "txt": call.choose(name, "txt", txt.shape[1], txt.device),
            "img": call.choose(name, "img", img.shape[1], img.device, offset=txt.shape[1]),
        }
        fresh = cls._live(original, block, name, call, a, rows) if call.live else {}
        out = {}
        for stream, x in (("img", img), ("txt", txt)):
            first, second = mods[stream]
            x = _gated(
                x,
                _refreshed(call, (*name, f"{stream}_attn"), rows[stream], fresh.get(f"{stream}_attn")),
                first.gate,
            )
            part = fresh.get(f"{stream}_mlp")
            if part is None and rows[stream] is not None:
                chosen = getattr(block, f"{stream}_norm2")(take_rows(x, rows[stream]))
                part = getattr(block, f"{stream}_mlp")(torch.addcmul(second.shift, chosen, 1 + second.scale))
            out[stream] = _gated(
                x, _refreshed(call, (*name, f"{stream}_mlp"), rows[stream], part), second.gate
            )
        return out["img"], _finite(out["txt"])

    @classmethod
    def _compute(cls, original, block, name, call: Call, a: dict, parts):
        """The block with the given parts computed on all tokens and the others replayed."""
        if "" in parts or parts >= set(cls.parts):
            with capture({k: block.get_submodule(path) for k, path in cls.outputs.items()}) as seen:
                out = original(**a)
            call.correct(name, seen)
            return out
        if "attn" in parts:
            kept = {block.get_submodule(k): call.module_value((*name, k)) for k in ("img_mlp", "txt_mlp")}
            with (
                replayed(kept),
                capture({k: block.get_submodule(cls.outputs[k]) for k in ("img_attn", "txt_attn")}) as seen,
            ):
                out = original(**a)
            call.correct(name, seen)
            return out
        mods, out = dict(zip(("img", "txt"), cls.modulation(block, a["vec"]))), {}
        for stream in ("img", "txt"):
            first, second = mods[stream]
            x = _gated(a[stream], call.module_value((*name, f"{stream}_attn")), first.gate)
            fresh = getattr(block, f"{stream}_mlp")(
                torch.addcmul(second.shift, getattr(block, f"{stream}_norm2")(x), 1 + second.scale)
            )
            call.correct(name, {f"{stream}_mlp": fresh})
            out[stream] = _gated(x, fresh, second.gate)
        return out["img"], _finite(out["txt"])

    @classmethod
    def _live(cls, original, block, name, call, a, rows):
        """Pre-gate outputs of the chosen rows, from the unmodified block on those rows against all keys and
        values."""
        img, txt = a["img"], a["txt"]
        if rows["txt"] is None and rows["img"] is None:
            return {}
        # The block needs a row of each stream; one that stands in for a stream without a choice is thrown
        # away.
        chosen = {
            s: torch.zeros(1, 1, dtype=torch.long, device=img.device) if r is None else r
            for s, r in rows.items()
        }
        own = slice(1 if rows["txt"] is None else None, -1 if rows["img"] is None else None)
        joint = _join(chosen["txt"], chosen["img"], txt.shape[1])
        streams = {s: take_rows(a[s], r) for s, r in chosen.items()}
        options = _live_rows(call, name, joint, a, own)
        with capture({k: block.get_submodule(path) for k, path in cls.outputs.items()}) as seen:
            original(
                **{**a, **streams, "pe": _position_rows(a.get("pe"), joint), "transformer_options": options}
            )
        return {k: v for k, v in seen.items() if rows[k[:3]] is not None}


class FluxSingle:
    """Single-stream block: parallel attention and MLP over the joint sequence (text first); returns x."""

    names = ("x", "vec", "pe", "attn_mask")
    outputs = {"out": "linear2"}
    inputs = ("linear1",)
    parts = ()
    """As of `FluxDouble`; attention and MLP are one."""

    @classmethod
    def modulation(cls, block, vec):
        return block.modulation(vec)[0] if getattr(block, "modulation", None) else vec

    @classmethod
    def modulated_input(cls, block, a) -> torch.Tensor:
        """As of `FluxDouble`."""
        mod = cls.modulation(block, a["vec"])
        return torch.addcmul(mod.shift, block.pre_norm(a["x"]), 1 + mod.scale)

    @classmethod
    def skip(cls, a):
        return a["x"]

    @classmethod
    def bind(cls, args, kwargs):
        return _bound(cls.names, args, kwargs)

    @classmethod
    def record(cls, original, block, name, call: Call, a: dict):
        refusal = _row_wise_refusal(block, a)
        if refusal is not None:
            call.batch.refuse(refusal)
            return original(**a)
        if call.rows:
            a["transformer_options"] = _watch_attention(call, name, a)
        with capture({"out": block.linear2}) as seen:
            out = original(**a)
        call.record((*name, "out"), seen["out"])
        return out

    @classmethod
    def conserve(cls, original, block, name, call: Call, a: dict):
        """Replays the fused output; the chosen rows run through the unmodified block with cached or live
        attention."""
        if call.parts(name):
            with capture({"out": block.linear2}) as seen:
                out = original(**a)
            call.correct(name, seen)
            return out
        x, n_txt = a["x"], call.n_txt
        rows = _join(
            call.choose(name, "txt", n_txt, x.device) if n_txt else None,
            call.choose(name, "img", x.shape[1] - n_txt, x.device, offset=n_txt),
            n_txt,
        )
        fresh = None
        if rows is not None:
            if call.live:
                options = _live_rows(call, name, rows, a)
            else:
                cached = take_rows(call.module_value((*name, "attn")), rows)
                options = with_override(a.get("transformer_options"), lambda attend, q, k, v: cached)
            with capture({"out": block.linear2}) as seen:
                original(
                    **{
                        **a,
                        "x": take_rows(x, rows),
                        "pe": _position_rows(a.get("pe"), rows),
                        "transformer_options": options,
                    }
                )
            fresh = seen["out"]
        gate = cls.modulation(block, a["vec"]).gate
        out = _gated(x, _refreshed(call, (*name, "out"), rows, fresh), gate)
        return _finite(out)
