"""Learned plans in ComfyUI's sampling: under the user's sampler, and as a sampler of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import comfy.model_sampling
import comfy.utils
from comfy.patcher_extension import WrappersMP

from ...cache_core.base.coordinates import same_levels
from ...cache_core.config import CacheConfig
from ...cache_core.learned.fit import follow
from ...cache_core.learned.plans import GUIDANCE_RANGE, LearnedPlan, Plans
from ...cache_core.learned.samplers import SAMPLERS
from ...cache_core.recipes import parts_of_plan
from .learned_runs import PLAN, falling, identity_of, sampler_name, say, velocity
from .patching import patch
from .requests import KEY, CacheRequest
from .samplers import KSAMPLER


@dataclass(frozen=True)
class PlanRequest:
    """What Use Learned Plan leaves in a model: the plans, the calls wanted as a share of the steps, and the
    node to report to."""

    plans: Plans
    name: str
    speedup: float
    aim: str
    node_id: str | None = None


def use_plan(model, request: PlanRequest, memory: float = 0.0) -> object:
    """A clone of the model that runs by the learned plan that fits each run, and in full where none does."""
    model = model.clone()
    model.model_options.setdefault("transformer_options", {})[PLAN] = request
    for key in (PLAN, KEY):  # ours must be the outer one
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, key)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, PLAN, _choose)
    return patch(model, KEY, CacheRequest(CacheConfig(method="learned"), request.node_id, memory=memory))


def plan_for(guider, request: PlanRequest, latent, sampler, sigmas) -> LearnedPlan:
    """The plan for a run. ValueError says why none fits."""
    patcher, name = guider.model_patcher, sampler_name(sampler)
    if not isinstance(patcher.model.model_sampling, comfy.model_sampling.CONST):
        raise ValueError("plans under a sampler are for flow models; use Learned Sampler with this model")
    guidance = float(getattr(guider, "cfg", 1.0))
    if guidance != 1 and {"sampler_cfg_function", "sampler_post_cfg_function"} & set(guider.model_options):
        raise ValueError("another node changes how guidance is mixed; use Learned Sampler, which follows it")
    if name not in SAMPLERS:
        raise ValueError(f"no plan runs under the sampler {name}; there are plans for {', '.join(SAMPLERS)}")
    if not falling(sigmas):
        raise ValueError("the noise levels of the run do not fall from step to step")
    if wrong := request.plans.differences(identity_of(guider, latent)):
        raise ValueError("; ".join(wrong))
    steps = len(sigmas) - 1
    return request.plans.choose(steps / request.speedup, request.aim, name, guidance, sigmas.tolist())


def _choose(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    guider = executor.class_obj
    options = guider.model_options.get("transformer_options", {})
    request: PlanRequest | None = options.get(PLAN)
    if request is None or KEY not in options or len(sigmas) < 2:
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    try:
        plan = plan_for(guider, request, latent_image, sampler, sigmas)
        settings = CacheConfig(method="learned", **parts_of_plan(plan.schedule()))
        said = f"Learned plan: {plan.calls} of {plan.steps} steps in full. {expected(plan)}"
    except ValueError as error:
        settings = CacheConfig(method="learned")
        said = f"{request.name} does not serve this run, which is sampled in full: {str(error).rstrip('.')}."
    say(said.strip(), request.node_id)
    guider.model_options["transformer_options"] = {
        **options,
        KEY: replace(options[KEY], settings=settings),
    }
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def expected(plan: LearnedPlan) -> str:
    """What to expect of a plan, in a sentence; empty where too few runs were recorded."""
    quality = plan.quality()
    if quality is None:
        return ""
    aim = "your uncached run" if plan.aim == "run" else "the exact solution"
    return (
        f"Expect latents {quality[0]:.0f} dB from {aim} ({quality[1]:.0f} in the worst of "
        f"{len(plan.expected)} recorded pictures, each left out of the fit)."
    )


# --- a sampler of its own ---------------------------------------------------------------------------


def learned_sampler(plans: Plans, plan: LearnedPlan, name: str):
    """A SAMPLER that follows a plan. It raises ValueError before the first evaluation where the run is
    another."""

    def sample_learned(model, x, sigmas, extra_args=None, callback=None, disable=None):
        extra = dict(extra_args or {})
        _check(plans, plan, name, model.inner_model, x, sigmas)
        options = extra.pop("model_options", {})
        bar = comfy.utils.ProgressBar(plan.calls) if callback is None else None

        def evaluate(y, sigma):
            return velocity(model, y, sigma, options, **extra)

        def told(k, y, velocity):
            if bar is not None:
                bar.update(1)
                return
            sigma = plan.times[k]
            assert callback is not None
            callback({"x": y, "i": k, "sigma": sigma, "sigma_hat": sigma, "denoised": y - sigma * velocity})

        return follow(x, evaluate, plan.sigmas, plan.full, plan.weights, None, told)

    return KSAMPLER(sample_learned)


def _check(plans: Plans, plan: LearnedPlan, name: str, guider, x, sigmas) -> None:
    """ValueError where a run is not what a plan was learned for."""
    wrong = plans.differences(identity_of(guider, x)) if hasattr(guider, "model_patcher") else []
    guidance = float(getattr(guider, "cfg", 1.0))
    if abs(guidance - plan.guidance) > GUIDANCE_RANGE * plan.guidance + 1e-9:
        wrong.append(
            f"the guidance is {guidance:g}, the plan's {plan.guidance:g} (set guidance of Learned Sampler to "
            "that of the run, or record runs at it)"
        )
    if not same_levels(plan.times, sigmas.tolist()):
        wrong.append("the noise levels are not those of Learned Sampler (connect its sigmas to the sampler)")
    if wrong:
        raise ValueError(f"The learned plan of {name} does not fit this run: {'; '.join(wrong)}.")
