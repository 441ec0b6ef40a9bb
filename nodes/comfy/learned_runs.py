"""Runs are recorded for learned plans, and the model is evaluated at what was recorded.

Everything here hangs on wrappers under a key of its own; a run leaves nothing behind."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP

from ...cache_core.base.coordinates import same_levels
from ...cache_core.learned.reference import Trajectory
from ...cache_core.schedule.sampler_traits import adds_noise, is_cfg_pp
from . import events, learned_files
from .identity import name_of
from .requests import KEY
from .samplers import CFGGuider, Sampler

log = logging.getLogger("dual_cache")
RECORD, PLAN, RUN = "dual_cache_record", "dual_cache_plan", "dual_cache_recording"


# --- what a run is ----------------------------------------------------------------------------------


def sampler_name(sampler) -> str:
    """The name of a SAMPLER as ComfyUI's list has it; of its function where the list lacks it."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
    return {"unipc": "uni_pc", "unipc_bh2": "uni_pc_bh2"}.get(name, name)


def identity_of(guider, latent: torch.Tensor) -> dict:
    """What plans for a run hold for; see `plans.LABELS`."""
    patcher = guider.model_patcher
    extra = sorted(
        {
            f"{key} {value:g}" if key == "guidance" and isinstance(value, (int, float)) else key
            for entries in guider.original_conds.values()
            for entry in entries
            for key, value in entry.items()
            if value is not None and key not in ("cross_attn", "pooled_output", "model_conds", "uuid")
        }
    )
    return {
        "model": name_of(patcher),
        "quantisation": str(patcher.model_dtype()).removeprefix("torch."),
        "lora": _patches(patcher),
        "conditioning": ", ".join(["text", *extra]),
        "area": math.prod(latent.shape[2:]),
    }


def _patches(patcher) -> str:
    """A fingerprint of the LoRAs on a model, by the names of what they change, their strengths and some of
    their values; "none" without any."""
    if not patcher.patches:
        return "none"
    digest = hashlib.sha256()
    for key in sorted(map(str, patcher.patches)):
        for patch in patcher.patches[key]:
            weights = getattr(patch[1], "weights", patch[1])
            digest.update(f"{key} {patch[0]}".encode())
            for part in weights if isinstance(weights, (list, tuple)) else [weights]:
                if isinstance(part, torch.Tensor):
                    digest.update(str([f"{v:.4g}" for v in part.flatten()[:16].float().tolist()]).encode())
    return digest.hexdigest()[:16]


def falling(sigmas: torch.Tensor) -> bool:
    levels = sigmas.tolist()
    return len(levels) > 1 and all(after < now for now, after in zip(levels, levels[1:]))


def _differences(models: dict, seen: Callable) -> dict:
    """Model options in which `seen` is told conditional minus unconditional denoised predictions."""

    def look(args):
        cond, uncond = args.get("cond_denoised"), args.get("uncond_denoised")
        known = isinstance(cond, torch.Tensor) and isinstance(uncond, torch.Tensor)
        if known and not math.isclose(args["cond_scale"], 1.0):
            seen(cond - uncond)
        return args["denoised"]

    options = comfy.model_patcher.create_model_options_clone(models)
    return comfy.model_patcher.set_model_options_post_cfg_function(options, look)


def velocity(model, x: torch.Tensor, sigma: float, options: dict, **more):
    """The guided velocity at x and conditional minus unconditional, or None without guidance."""
    found: list[torch.Tensor] = []
    denoised = model(x, sigma * x.new_ones(len(x)), model_options=_differences(options, found.append), **more)
    return (x - denoised) / sigma, -found[-1] / sigma if found else None


# --- recording --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordRequest:
    """What the Record node leaves in a model: the name of the runs, how many, and the node to report to."""

    name: str
    most: int
    node_id: str | None = None


class _Recording:
    """A run that is recorded, in transformer_options."""

    def __init__(self, levels: list[float]):
        self.levels, self.states, self.velocities = levels, [], []
        self.end: torch.Tensor | None = None

    def see(self, x: torch.Tensor, sigma: float, denoised: torch.Tensor) -> None:
        """The first evaluation at each noise level counts, whatever else a sampler evaluates between."""
        i = len(self.states)
        if i < len(self.levels) - 1 and abs(sigma - self.levels[i]) <= 1e-4 * max(self.levels[0], 1e-3):
            self.states.append(x.detach().float().cpu().clone())
            self.velocities.append(((x - denoised) / sigma).detach().float().cpu())


def record(model, request: RecordRequest) -> object:
    """A clone of the model whose runs are recorded."""
    model = model.clone()
    model.model_options.setdefault("transformer_options", {})[RECORD] = request
    wrappers = {
        WrappersMP.OUTER_SAMPLE: _record_run,
        WrappersMP.SAMPLER_SAMPLE: _record_end,
        WrappersMP.PREDICT_NOISE: _record_step,
    }
    for kind, wrapper in wrappers.items():
        model.remove_wrappers_with_key(kind, RECORD)
        model.add_wrapper_with_key(kind, RECORD, wrapper)
    return model


def _not_recordable(guider, sampler, sigmas, mask, shapes) -> str | None:
    """Why a run is not recorded, or None."""
    options = guider.model_options.get("transformer_options", {})
    name = sampler_name(sampler)
    if KEY in options:
        return "Dual Cache is on this model too, so the run is not a plain one; take one of the two out"
    if adds_noise(name) or is_cfg_pp(name):
        return f"the sampler {name} adds noise or changes guidance, and such a run cannot be learned"
    if not falling(sigmas):
        return "its noise levels do not fall from step to step"
    if mask is not None:
        return "it has a mask, whose part of the latent does not follow the model"
    if shapes is not None and len(shapes) > 1:
        return "its latent has several parts, such as picture and sound"
    return None


def _record_run(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
    guider = executor.class_obj
    options = guider.model_options.get("transformer_options", {})
    request: RecordRequest | None = options.get(RECORD)
    passed = (noise, latent_image, sampler, sigmas, denoise_mask, *args)
    if request is None:
        return executor(*passed, **kwargs)
    have = len(learned_files.runs_of(request.name))
    why = _not_recordable(guider, sampler, sigmas, denoise_mask, kwargs.get("latent_shapes"))
    if have >= request.most:
        why = f"{have} runs are there already; run Fit Plan, and take Record out"
    try:
        conds = learned_files.portable(guider.original_conds)
    except ValueError as error:
        conds, why = {}, why or str(error)
    if why:
        say(f"This run was not recorded: {why}.", request.node_id)
        return executor(*passed, **kwargs)
    run = _Recording(sigmas.tolist())
    guider.model_options["transformer_options"] = {**options, RUN: run}
    try:
        samples = executor(*passed, **kwargs)
    finally:
        guider.model_options["transformer_options"].pop(RUN, None)
    try:
        said = _keep(
            request, run, guider, latent_image, sampler, conds, kwargs.get("seed", args[-1] if args else 0)
        )
    except (ValueError, OSError, RuntimeError) as error:
        said = f"This run was not recorded: {str(error).rstrip('.')}."
    say(said, request.node_id)
    return samples


def _keep(request, run: _Recording, guider, latent, sampler, conds, seed) -> str:
    if len(run.states) != len(run.levels) - 1 or run.end is None:
        raise ValueError("the sampler did not evaluate the model once at every noise level")
    trajectory = Trajectory(tuple(run.levels), [*run.states, run.end], run.velocities)
    recorded = learned_files.Recorded(
        trajectory,
        identity_of(guider, latent),
        float(guider.cfg),
        sampler_name(sampler),
        conds,
        latent.detach().cpu() if torch.count_nonzero(latent) else None,
        int(seed or 0),
    )
    for path in learned_files.runs_of(request.name)[:1]:
        known = learned_files.load(path)
        if known.kind() != recorded.kind() or not same_levels(known.trajectory.sigmas, trajectory.sigmas):
            raise ValueError(
                f"the runs of {request.name} are of another kind (model, guidance, sampler, steps or noise "
                "levels); record under another name"
            )
    path = learned_files.save(request.name, recorded)
    count, size = len(learned_files.runs_of(request.name)), path.stat().st_size / 1e6
    more = " Run Fit Plan next." if count >= request.most else ""
    return f"Recorded {count} of {request.most} runs for {request.name} ({size:.1f} MB each).{more}"


def _record_end(executor, model_wrap, sigmas, extra_args, *args, **kwargs):
    samples = executor(model_wrap, sigmas, extra_args, *args, **kwargs)
    run = extra_args.get("model_options", {}).get("transformer_options", {}).get(RUN)
    if run is not None:
        run.end = samples.detach().float().cpu()
    return samples


def _record_step(executor, x, timestep, model_options=None, seed=None):
    denoised = executor(x, timestep, {} if model_options is None else model_options, seed)
    run = (model_options or {}).get("transformer_options", {}).get(RUN)
    if run is not None:
        run.see(x, float(timestep.flatten()[0]), denoised)
    return denoised


def say(sentence: str, node_id: str | None) -> None:
    log.info("Dual Cache: %s", sentence)
    events.show(sentence, node_id)


# --- evaluating for a fit ---------------------------------------------------------------------------


class _Once(Sampler):
    """A sampler that evaluates the model once, at a state and a noise level, and keeps the velocity."""

    def __init__(self, x: torch.Tensor, sigma: float):
        self.x, self.sigma, self.found = x, sigma, None

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        x = self.x.to(noise)
        more = {"seed": extra_args.get("seed")}
        self.found = velocity(model_wrap, x, self.sigma, extra_args["model_options"], **more)
        return x


def evaluator(model, runs: list[learned_files.Recorded]):
    """What `fit.fit` evaluates: the model at the conditioning of recorded runs, one of them at a time."""
    plain = model.clone()
    options = plain.model_options["transformer_options"] = dict(
        plain.model_options.get("transformer_options", {})
    )
    for key in (KEY, RECORD, PLAN):
        options.pop(key, None)
        for kind in (
            WrappersMP.OUTER_SAMPLE,
            WrappersMP.SAMPLER_SAMPLE,
            WrappersMP.PREDICT_NOISE,
            WrappersMP.APPLY_MODEL,
        ):
            plain.remove_wrappers_with_key(kind, key)
        plain.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, key)

    def evaluate(batch: int, x: torch.Tensor, sigma: float):
        run = runs[batch]
        guider = CFGGuider(plain)
        guider.original_conds = {
            side: [{**entry, "model_conds": {}, "uuid": f"{side} {i}"} for i, entry in enumerate(entries)]
            for side, entries in run.conds.items()
        }
        guider.set_cfg(run.guidance)
        once = _Once(x, sigma)
        latent = torch.zeros_like(x) if run.latent is None else run.latent
        levels = torch.tensor([sigma, 0.0])
        guider.sample(torch.zeros_like(x), latent, once, levels, disable_pbar=True, seed=run.seed)
        assert once.found is not None, "the sampler has evaluated the model"
        guided, difference = once.found
        return guided.float().cpu(), None if difference is None else difference.float().cpu()

    return evaluate
