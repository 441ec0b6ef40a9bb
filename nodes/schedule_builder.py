"""Cache Schedule Builder: a plan of full, conservative and aggressive steps as a value."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.base.limits import MAX_STEPS
from ..cache_core.recipes import from_preset, preset_names
from ..cache_core.schedule.plan import LETTERS, CacheSchedule, explicit, from_generator
from .dual_cache import DEFAULT_PRESET
from .types import CATEGORY, Schedule, advanced, optional

CUSTOM = "custom"
PATTERNS = {
    "aggressive only": "A",
    "conservative, aggressive": "CA",
    "aggressive, conservative": "AC",
    "conservative only": "C",
}
DEFAULT_PATTERN = "conservative, aggressive"


def _inputs() -> list[io.Input]:
    return [
        *optional(
            io.Combo.Input(
                "preset",
                options=[CUSTOM, *preset_names()],
                default=DEFAULT_PRESET,
                tooltip="A ready plan, or custom to use the settings below.",
            ),
            io.Int.Input(
                "steps",
                default=30,
                min=1,
                max=1000,
                tooltip="Steps of the sampler. At another step count the plan is scaled.",
            ),
        ),
        *optional(*_cycle_inputs(), *_range_inputs()),
    ]


def _cycle_inputs() -> list[io.Input]:
    """What repeats between full steps."""
    return [
        advanced(
            io.Int.Input(
                "interval",
                default=5,
                min=1,
                max=50,
                tooltip="Custom: one full step every this many steps.",
            )
        ),
        advanced(
            io.Combo.Input(
                "pattern",
                options=list(PATTERNS),
                default=DEFAULT_PATTERN,
                tooltip="Custom: the kinds of the steps between full steps, in turn.",
            )
        ),
        advanced(
            io.Float.Input(
                "ratio",
                default=0.1,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Custom: share of the tokens that a conservative step recomputes.",
            )
        ),
    ]


def _range_inputs() -> list[io.Input]:
    """Where nothing is skipped, and a plan as text."""
    return [
        advanced(
            io.Int.Input(
                "warmup",
                default=3,
                min=0,
                max=100,
                tooltip="Custom: full steps at the beginning, where the layout of the picture forms.",
            )
        ),
        advanced(
            io.Int.Input(
                "tail",
                default=1,
                min=0,
                max=100,
                tooltip="Custom: full steps at the end, where fine detail forms.",
            )
        ),
        advanced(
            io.Float.Input(
                "start",
                default=0.0,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Custom: share of the steps before which nothing is skipped.",
            )
        ),
        advanced(
            io.Float.Input(
                "end",
                default=1.0,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Custom: share of the steps after which nothing is skipped.",
            )
        ),
        advanced(
            io.String.Input(
                "explicit",
                default="",
                tooltip="One letter per step, such as FFFCACAF, or a schedule's JSON. It overrides "
                "everything above except steps.",
            )
        ),
    ]


class CacheScheduleBuilder(io.ComfyNode):
    """Builds a CACHE_SCHEDULE from a preset, from generator settings or from a list of steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CacheScheduleBuilder",
            display_name="Cache Schedule Builder",
            category=CATEGORY,
            description="Plans which steps run in full (F), which refresh a few tokens (C) and which "
            "skip the blocks (A).",
            inputs=_inputs(),
            outputs=[Schedule.Output(display_name="schedule"), io.String.Output(display_name="json")],
        )

    @classmethod
    def execute(
        cls,
        preset=DEFAULT_PRESET,
        steps=30,
        interval=5,
        pattern=DEFAULT_PATTERN,
        ratio=0.1,
        warmup=3,
        tail=1,
        start=0.0,
        end=1.0,
        explicit="",
    ) -> io.NodeOutput:
        schedule = build(preset, steps, interval, pattern, ratio, warmup, tail, start, end, explicit)
        return io.NodeOutput(schedule, schedule.to_json())


def build(preset, steps, interval, pattern, ratio, warmup, tail, start, end, text) -> CacheSchedule:
    """The schedule that the node's widgets describe; ValueError in one sentence when they describe none."""
    text = text.strip()
    if text.startswith("{"):
        return _read(text).scaled(steps)
    if text:
        return _listed("".join(text.upper().split()), ratio).scaled(steps)
    if preset != CUSTOM:
        return from_preset(preset).schedule_for(steps)
    kind = PATTERNS[pattern]
    common = {"interval": interval, "warmup": warmup, "tail": tail, "start": start, "end": end}
    if kind == "A":
        return from_generator({"type": "uniform", **common}, steps)
    return from_generator({"type": "dual", "order": kind, "ratio": ratio, **common}, steps)


def _read(text: str) -> CacheSchedule:
    """The schedule of a JSON text; its errors say where the text stands."""
    try:
        return CacheSchedule.from_json(text)
    except ValueError as error:
        raise ValueError(f"explicit is not a schedule's JSON ({str(error).rstrip('.')}).") from error


def _listed(letters: str, ratio: float) -> CacheSchedule:
    """The schedule of a list as typed; its errors count letters as a user does."""
    if len(letters) > MAX_STEPS:
        raise ValueError(f"explicit must have at most {MAX_STEPS} letters.")
    for number, letter in enumerate(letters, 1):
        if letter not in LETTERS:
            raise ValueError(f"letter {number} of explicit must be F, C or A.")
    if letters[0] != "F":
        raise ValueError("letter 1 of explicit must be F, because nothing is cached before the first step.")
    return explicit(letters, ratio)
