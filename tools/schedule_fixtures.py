"""Writes tests/fixtures/schedules.json, which holds the Python and the JavaScript schedules to the same
results.

Run `python -m tools.regenerate` after a deliberate change; a test compares the committed file with what this
makes.

The file's parts, each a list of independent cases:
cases: a generator at a step count (or an explicit list, generator null) with its kinds, ratios and counts,
    its JSON form, and its
    speed-up and peak memory for a model size (`cost`, `layout`, `live_attention`, `memory`). Compare
    speed-ups to a relative 1e-9, all else exactly.
scaled: a schedule in JSON form, a new step count, and the kinds, ratios and generator there.
invalid: a JSON text and the sentence that refuses it. (The literal NaN is not among them: JavaScript's parser
    refuses the whole text,
    Python's passes it on to be refused by field.)
invalid_generators: a generator dict, a step count and the sentence.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from cache_core.base.names import LEVELS
from cache_core.schedule.cost import FLUX_DEV, CostModel, estimated_speedup, peak_bytes
from cache_core.schedule.plan import CacheSchedule, explicit, from_generator

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "schedules.json"
SMALL = CostModel(width=256, image_tokens=256, text_tokens=24, double=3, single=6)

_OPEN_SORA_CROSS = "FFF CCA FCA CCA FCA CCA FCA CCA FCA CCA"
# Explicit schedules; ratio is one number or one per step.
_EXPLICIT = [
    ("F", 0.1),
    ("FC", 1.0),
    ("FACF", [1.0, 0.0, 0.25, 1.0]),
    ("FFCACAFCCA", [0, 0, 0.1, 0, 0.2, 0, 0, 0.3, 0.4, 0]),
    (_OPEN_SORA_CROSS, 0.1),
]


def _generators():
    """(generator, step counts) of the cases; settings left out take their defaults."""
    flux = {"type": "dual", "interval": 5, "warmup": 3}
    yield {"type": "full"}, (1, 4, 30)
    yield {"type": "uniform", "interval": 3}, (1, 2, 4, 8, 30, 50)
    yield {"type": "uniform", "interval": 6, "warmup": 3}, (50,)
    yield {"type": "uniform", "interval": 1}, (8,)
    yield {"type": "uniform", "interval": 4, "warmup": 0}, (1, 9)
    yield {"type": "uniform", "interval": 4, "warmup": 2, "tail": 3, "start": 0.1, "end": 0.9}, (30,)
    yield {"type": "dual", "interval": 3}, (1, 2, 4, 8, 30, 50)
    yield {"type": "dual", "interval": 4}, (20,)
    yield {"type": "dual", "interval": 5}, (20, 50)
    yield flux, (2, 4, 8, 30, 50)
    yield {**flux, "interval": 7}, (50,)
    yield {**flux, "interval": 9}, (50,)
    yield {**flux, "tail": 1, "ratio": 0.3}, (28,)
    yield {**flux, "order": "C"}, (30,)
    yield {**flux, "order": "AC"}, (13,)
    yield {**flux, "order": "CCA"}, (25,)
    yield {"type": "dual", "interval": 8, "order": "C", "ratio": 0.07, "warmup": 3}, (50,)
    yield {**flux, "start": 0.2, "end": 0.8}, (1, 7, 50)
    yield {**flux, "start": 0.25, "end": 0.35}, (10, 30)  # both bounds at half a step for 10
    yield {**flux, "start": 0.5, "end": 0.5}, (8,)
    yield {**flux, "start": 1, "end": 1}, (8,)
    yield {**flux, "end": 0.0}, (8,)
    yield {**flux, "warmup": 6, "tail": 6}, (8, 13)
    yield {**flux, "warmup": 10000, "tail": 10000}, (4,)
    yield {"type": "dual", "interval": 10000, "ratio": 1.0}, (8,)
    yield {"type": "duca_dit", "interval": 3}, (1, 2, 8, 50)
    yield {"type": "duca_dit", "interval": 4, "ratio": 0.1}, (50,)
    yield {"type": "duca_dit", "interval": 5}, (50,)
    yield {"type": "duca_dit", "interval": 1}, (8,)
    yield {"type": "modulo", "interval": 6, "warmup": 5}, (1, 5, 7, 50)
    yield {"type": "modulo", "interval": 1}, (8,)
    yield {"type": "growing", "growth": 0.75, "warmup": 5}, (1, 4, 30, 50)
    yield {"type": "growing", "growth": 3}, (8, 50)
    yield {"type": "growing", "growth": 0, "warmup": 0}, (9,)


def _case(generator, steps, schedule: CacheSchedule, number: int) -> dict:
    cost = (FLUX_DEV, SMALL)[number % 2]
    layout, live = ("built", "published")[number // 2 % 2], number % 5 == 4
    memory = {
        "snapshots": 1 + number % 3,
        "module_snapshots": 1 + number % 2,
        "bytes_per_value": 2 + number % 2 * 2,
        "branches": 1 + number % 3 // 2,
        "level": LEVELS[number % len(LEVELS)],
    }
    aggressive = (0.0, 1 / 3)[number % 7 // 4]
    return {
        "generator": generator,
        "steps": steps,
        "kinds": schedule.kinds,
        "ratios": list(schedule.ratios),
        "counts": schedule.counts(),
        "cost": asdict(cost),
        "layout": layout,
        "live_attention": live,
        "aggressive": aggressive,
        "speedup": estimated_speedup(schedule, cost, layout, live, aggressive),
        "memory": memory,
        "peak_bytes": peak_bytes(schedule, cost, live_attention=live, **memory),
        "json": schedule.to_dict(),
    }


def _scaled():
    pairs = [
        ("FCACAFCACA", (1, 2, 4, 10, 13, 50)),
        (_OPEN_SORA_CROSS, (8, 20, 50)),
        ("FFFFFACCCCC", (5, 22)),
        ("FFCACAFCCA", (3, 7, 30)),
    ]
    schedules = [
        (explicit(kinds, next((r for k, r in _EXPLICIT if k == kinds), 0.1)), targets)
        for kinds, targets in pairs
    ]
    schedules.append(
        (
            from_generator({"type": "dual", "interval": 5, "warmup": 3, "start": 0.1, "end": 0.9}, 50),
            (1, 8, 30),
        )
    )
    schedules.append((from_generator({"type": "duca_dit", "interval": 3}, 50), (20,)))
    for schedule, targets in schedules:
        for steps in targets:
            scaled = schedule.scaled(steps)
            result = {"kinds": scaled.kinds, "ratios": list(scaled.ratios), "generator": scaled.generator}
            yield {"json": schedule.to_dict(), "steps": steps, **result}


def _invalid_texts():
    """JSON texts that must be refused."""
    good = from_generator({"type": "dual", "interval": 3}, 4).to_dict()
    listed = explicit("FCA").to_dict()
    yield from ("", "{", "FCA", "'F'", json.dumps(good)[:-1], "null", "[]", '"F"', "3")
    for key in good:
        yield json.dumps({k: v for k, v in good.items() if k != key})
    changes = [
        {"format": 0},
        {"format": 2},
        {"format": "1"},
        {"format": True},
        {"format": None},
        {"format": 2, "kinds": 7},
        {"kind": "workflow"},
        {"kind": None},
        {"name": 5},
        {"name": None},
        {"steps": 0},
        {"steps": -1},
        {"steps": 2},
        {"steps": 3.5},
        {"steps": "3"},
        {"steps": None},
        {"steps": True},
        {"steps": 10001},
        {"kinds": ""},
        {"kinds": "FC"},
        {"kinds": "fca"},
        {"kinds": "FXA"},
        {"kinds": "F A"},
        {"kinds": "CCA"},
        {"kinds": "AFF"},
        {"kinds": ["F", "C", "A"]},
        {"kinds": None},
        {"ratios": 0.1},
        {"ratios": "0.1"},
        {"ratios": None},
        {"ratios": {}},
        {"ratios": []},
        {"ratios": [0.1, 0.1]},
        {"ratios": [0.1, 1.01, 0.1]},
        {"ratios": [0.1, 0.1, -0.001]},
        {"ratios": ["0.1", 0.1, 0.1]},
        {"ratios": [0.1, None, 0.1]},
        {"ratios": [0.1, True, 0.1]},
        {"ratios": [0.1, [0.1], 0.1]},
        {"generator": "dual"},
        {"generator": []},
        {"generator": 1},
        {"generator": {"type": "full"}},
        {"generator": {"type": "dual", "interval": 3, "ratio": 0.2}},
        {"generator": {"type": "dual"}},
    ]
    for change in changes:
        yield json.dumps({**listed, **change})
    yield json.dumps({**listed, "ratios": [0.1, 0.1, 0.1]}).replace("[0.1, 0.1, 0.1]", "[0.1, 1e999, 0.1]")


def _invalid_generators():
    dual = {"type": "dual", "interval": 5}
    for change in (
        {"type": "dbcache"},
        {"type": None},
        {"type": ["dual"]},
        {"type": "constructor"},
        {"interval": 0},
        {"interval": 2.5},
        {"interval": "5"},
        {"interval": None},
        {"interval": 10001},
        {"order": ""},
        {"order": "CF"},
        {"order": "ca"},
        {"order": 1},
        {"order": "CA\n"},
        {"ratio": 1.5},
        {"ratio": -0.1},
        {"ratio": "a"},
        {"warmup": -1},
        {"warmup": 10001},
        {"tail": -1},
        {"tail": False},
        {"start": -0.1},
        {"start": 0.6, "end": 0.5},
        {"end": 1.1},
        {"end": None},
        {"gain": 0.5},
    ):
        yield {**dual, **change}, 10
    yield {"interval": 3}, 10
    yield {"type": "uniform"}, 10
    yield {"type": "full", "interval": 3}, 10
    yield {"type": "growing"}, 10
    for growth in (-0.5, 101, "1", None, True):
        yield {"type": "growing", "growth": growth}, 10
    yield {"type": "modulo", "interval": 3, "tail": 1}, 10
    yield {"type": "uniform", "interval": 3, "order": "CA"}, 10
    yield "dual", 10
    yield None, 10
    for steps in (0, 10001, 2.5, "10", None, True):
        yield dual, steps


def _refusal(function, *arguments) -> str:
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"accepted: {arguments}")


def build() -> dict:
    """The fixture's content."""
    made = [
        (generator, steps, from_generator(generator, steps))
        for generator, counts in _generators()
        for steps in counts
    ]
    made += [(None, len(kinds.replace(" ", "")), explicit(kinds, ratio)) for kinds, ratio in _EXPLICIT]
    refused = [
        {"generator": g, "steps": steps, "error": _refusal(from_generator, g, steps)}
        for g, steps in _invalid_generators()
    ]
    return {
        "cases": [_case(*case, number) for number, case in enumerate(made)],
        "scaled": list(_scaled()),
        "invalid": [
            {"text": text, "error": _refusal(CacheSchedule.from_json, text)} for text in _invalid_texts()
        ],
        "invalid_generators": refused,
    }


def render(content: dict) -> str:
    """JSON with one case per line."""
    parts = [
        f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]"
        for key, cases in content.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FIXTURE.parent.mkdir(exist_ok=True)
    FIXTURE.write_text(render(build()), encoding="utf-8")
