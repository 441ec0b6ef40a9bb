"""Record, Fit Plan, Use Learned Plan and Learned Sampler: record a few runs once, then choose a speed."""

from __future__ import annotations

import time
from dataclasses import replace

import comfy.utils
import torch
from comfy_api.latest import io

from ..cache_core.base.coordinates import same_levels
from ..cache_core.learned.learning import calls_needed, learn
from ..cache_core.learned.plans import AIMS, EXACT, RUN, Plans
from ..cache_core.learned.reference import Trajectory, solve_exactly
from ..cache_core.learned.samplers import SAMPLERS
from .comfy import events, learned_files, learned_runs, learned_sampling
from .types import CATEGORY, advanced

LearnedPlans = io.Custom("CACHE_LEARNED_PLANS")
OWN = "embedded.plans.json"
FINE = 40
"""Steps of third order that are taken for exact."""
SPEEDS = "5, 6, 8, 10, 12, 15"


def plan_inputs() -> list[io.Input]:
    """Where learned plans come from."""
    return [
        io.Combo.Input(
            "name",
            options=learned_files.names(),
            default=OWN,
            optional=True,
            tooltip="A file of learned plans in the folder models/cache_profiles, or the pack's own.",
        ),
        LearnedPlans.Input(
            "plans", optional=True, tooltip="Plans from Fit Plan; they replace the file of that name."
        ),
    ]


class Record(io.ComfyNode):
    """Patches a MODEL so that its next runs are recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheRecord",
            display_name="Record",
            category=CATEGORY,
            description="Records the next runs of a model for Fit Plan. They are sampled in full, as without "
            "this node. About eight pictures of different prompts are enough.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to learn about; a UNet too."),
                io.String.Input(
                    "name",
                    default="my model",
                    optional=True,
                    tooltip="Name of the recorded runs. A run of another kind is refused and nothing is "
                    "overwritten.",
                ),
                io.Int.Input(
                    "runs",
                    default=8,
                    min=1,
                    max=learned_files.MOST_RUNS,
                    optional=True,
                    tooltip="How many runs are recorded; later ones are not.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, patched. Its pictures are those of plain sampling.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, name="my model", runs=8) -> io.NodeOutput:
        learned_files.runs_folder(name)  # a wrong name is told now
        return io.NodeOutput(
            learned_runs.record(model, learned_runs.RecordRequest(name, runs, cls.hidden.unique_id))
        )


class FitPlan(io.ComfyNode):
    """Fits plans to recorded runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheFitPlan",
            display_name="Fit Plan",
            category=CATEGORY,
            description="Fits learned plans to the runs that Record has kept: which steps are computed, and "
            "weights for the others. Takes about as long as sampling each recorded picture twice per speed.",
            inputs=[
                io.Model.Input("model", tooltip="The model that was recorded, with the same LoRAs."),
                io.String.Input(
                    "name",
                    default="my model",
                    optional=True,
                    tooltip="Name of the recorded runs; the plans are saved under it.",
                ),
                io.String.Input(
                    "calls",
                    default=SPEEDS,
                    optional=True,
                    tooltip="Numbers of model calls to make plans for, apart by commas. Those that reach the "
                    "recorded steps are left out.",
                ),
                io.Combo.Input(
                    "aim",
                    options=list(AIMS),
                    default=RUN,
                    optional=True,
                    tooltip="run: ends where the recorded runs ended. exact: ends where infinitely many "
                    "steps would end; takes three calls per recorded step more, and is for Learned Sampler.",
                ),
                advanced(
                    io.Boolean.Input(
                        "own_sampler",
                        default=False,
                        optional=True,
                        tooltip="With the aim run, makes plans for Learned Sampler instead of plans under "
                        "the recorded sampler.",
                    )
                ),
            ],
            outputs=[
                LearnedPlans.Output(
                    display_name="plans",
                    tooltip="All plans of the file, for Use Learned Plan and Learned Sampler.",
                ),
                io.String.Output(display_name="text", tooltip="What to expect at each number of calls."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name="my model", **inputs):
        return [(p.name, p.stat().st_mtime_ns) for p in learned_files.runs_of(name)]

    @classmethod
    def execute(cls, model, name="my model", calls=SPEEDS, aim=RUN, own_sampler=False) -> io.NodeOutput:
        runs = recorded(name)
        steps = len(runs[0].trajectory.sigmas) - 1
        budgets = [n for n in numbers(calls) if n < steps]
        if not budgets:
            raise ValueError(f"calls must hold a number below the {steps} steps that were recorded.")
        under = None if own_sampler or aim == EXACT else runs[0].sampler
        if under is not None and under not in SAMPLERS:
            raise ValueError(
                f"there are no plans under the sampler {under}; turn own_sampler on and use Learned Sampler."
            )
        plans, text = fitted(model, name, runs, budgets, aim, under, cls.hidden.unique_id)
        return io.NodeOutput(plans, text, ui={"text": [text]})


def numbers(text: str) -> list[int]:
    """The whole numbers of a list apart by commas, each once. ValueError where it is none."""
    parts = [p.strip() for p in text.replace(";", ",").split(",") if p.strip()]
    if (
        not parts
        or not all(p.isascii() and p.isdigit() and 1 <= int(p) <= 10_000 for p in parts)
        or len(parts) > 50
    ):
        raise ValueError('calls must be whole numbers from 1 apart by commas, such as "6, 10, 15".')
    return sorted(set(map(int, parts)))


def recorded(name: str) -> list[learned_files.Recorded]:
    """The recorded runs of a name, all of one kind. ValueError in one sentence."""
    runs = [learned_files.load(path) for path in learned_files.runs_of(name)]
    if not runs:
        raise ValueError(
            f"no run is recorded under the name {name}: put Record on the model and sample some pictures."
        )
    first = runs[0]
    for run in runs[1:]:
        if run.kind() != first.kind() or not same_levels(run.trajectory.sigmas, first.trajectory.sigmas):
            raise ValueError(
                f"the runs recorded under the name {name} are of different kinds; record them anew."
            )
    # Their noise levels may differ by rounding alone.
    return [replace(r, trajectory=replace(r.trajectory, sigmas=first.trajectory.sigmas)) for r in runs]


def exactly(run: Trajectory, parts: int, velocity) -> Trajectory:
    """The exact solution from a recorded run's start at its noise levels, in so many parts for each step."""
    levels = [a + (b - a) * i / parts for a, b in zip(run.sigmas, run.sigmas[1:]) for i in range(parts)]
    fine = solve_exactly([*levels, run.sigmas[-1]], run.states[0], velocity)
    return Trajectory(run.sigmas, fine.states[::parts], fine.velocities[::parts])


@torch.no_grad()
def fitted(model, name, runs, budgets, aim, under, node_id) -> tuple[Plans, str]:
    """Fits plans, adds them to the file and says what to expect."""
    evaluate, steps = learned_runs.evaluator(model, runs), len(runs[0].trajectory.sigmas) - 1
    parts = max(1, round(FINE / steps))
    total = calls_needed(budgets, len(runs), steps) + (3 * steps * parts * len(runs) if aim == EXACT else 0)
    bar, started, done = comfy.utils.ProgressBar(total), time.perf_counter(), 0

    def progress():
        nonlocal done
        done += 1
        bar.update(1)
        if done % 10 == 0:
            left = (time.perf_counter() - started) / done * (total - done)
            events.show(f"Fitting: {done} of at most {total} calls, about {left:.0f} s left.", node_id)

    def counted(b, x, sigma):
        found = evaluate(b, x, sigma)
        progress()
        return found

    aims = [r.trajectory for r in runs]
    if aim == EXACT:
        aims = [
            exactly(r.trajectory, parts, lambda x, s, b=b: counted(b, x, s)[0]) for b, r in enumerate(runs)
        ]
    made = learn(aims, counted, budgets, runs[0].guidance, aim, under)
    areas = [r.identity["area"] for r in runs]
    plans = Plans({**runs[0].identity, "area": [min(areas), max(areas)]}, tuple(made))
    path = learned_files.path_of(name, new=True)
    whole = Plans.load(path).merged(plans) if path.is_file() else plans
    whole.save(path)
    lines = [f"{path.name} holds {len(whole.plans)} plans, learned from {len(runs)} recorded runs."]
    lines += [
        f"{p.calls} calls ({steps / p.calls:.1f}x): {learned_sampling.expected(p) or 'fitted'}" for p in made
    ]
    if len(runs) < 4:
        lines.append("Fewer than four runs tell nothing about other prompts; record eight.")
    return whole, "\n".join(lines)


class UseLearnedPlan(io.ComfyNode):
    """Patches a MODEL so that runs skip steps by a learned plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheUseLearnedPlan",
            display_name="Use Learned Plan",
            category=CATEGORY,
            description="Samples by a learned plan under your own sampler: choose a speed. A run that no "
            "plan fits (another model, guidance, sampler, scheduler or number of steps) is sampled in full, "
            "and the node says why.",
            inputs=[
                io.Model.Input("model", tooltip="The model that was recorded, with the same LoRAs."),
                io.Float.Input(
                    "speedup",
                    default=3.0,
                    min=1.0,
                    max=10.0,
                    step=0.1,
                    optional=True,
                    tooltip="Steps over calls; the plan nearest to it is taken.",
                ),
                *plan_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model, patched.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, speedup=3.0, name=OWN, plans=None) -> io.NodeOutput:
        plans = learned_files.read(name) if plans is None else plans
        request = learned_sampling.PlanRequest(plans, name, speedup, RUN, cls.hidden.unique_id)
        return io.NodeOutput(learned_sampling.use_plan(model, request))


class LearnedSampler(io.ComfyNode):
    """A SAMPLER with its SIGMAS from a learned plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheLearnedSampler",
            display_name="Learned Sampler",
            category=CATEGORY,
            description="A sampler with its noise levels from a learned plan, for SamplerCustom. It needs no "
            "cache, and works on every model that was recorded, UNets included.",
            inputs=[
                io.Int.Input(
                    "calls",
                    default=10,
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="Model calls; the plan nearest to it is taken.",
                ),
                io.Float.Input(
                    "guidance",
                    default=2.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="The cfg of the run, by which the plan is chosen; plans hold within a tenth of "
                    "it.",
                ),
                io.Combo.Input(
                    "aim",
                    options=[EXACT, RUN],
                    default=EXACT,
                    optional=True,
                    tooltip="exact: ends where infinitely many steps would end. run: ends where the recorded "
                    "runs ended.",
                ),
                *plan_inputs(),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler", tooltip="For SamplerCustom, with these sigmas alone."
                ),
                io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels of the plan."),
                io.String.Output(display_name="text", tooltip="What to expect."),
            ],
        )

    @classmethod
    def execute(cls, calls=10, guidance=2.0, aim=EXACT, name=OWN, plans=None) -> io.NodeOutput:
        plans = learned_files.read(name) if plans is None else plans
        plan = plans.choose(calls, aim, "", guidance)
        text = f"{plan.calls} calls at guidance {plan.guidance:g}. {learned_sampling.expected(plan)}".strip()
        return io.NodeOutput(
            learned_sampling.learned_sampler(plans, plan, name), torch.tensor(plan.times), text
        )
