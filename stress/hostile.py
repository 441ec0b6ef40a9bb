"""Files and texts from others: a reader gives what it read or one clear sentence, in little time and
memory, and never runs code.

Needs hypothesis, and atheris where it is installed; neither ComfyUI nor its Python.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cache_core.calibration.profile import FORMAT, KIND, Profile
from cache_core.predictors.build import forecast
from cache_core.recipes import PRESETS, from_json, settings_of, to_json
from cache_core.report.run_report import Report, StepRecord
from cache_core.schedule import mask_files
from cache_core.schedule.masks import Mask
from cache_core.schedule.plan import CacheSchedule, dual, from_generator

from .rows import Deadline, Row, tried

ROOT = Path(__file__).resolve().parents[1]
SENTENCE, SECONDS, MEGABYTES = 700, 5.0, 256
EXAMPLES = 300


# --- what a reader may do -------------------------------------------------------------------------


def reads(reader: Callable, data) -> object | None:
    """What the reader makes of the data, or None where it says in one sentence what is wrong. AssertionError
    for anything else."""
    start = time.monotonic()
    try:
        found = reader(data)
    except ValueError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) <= SENTENCE, f"not one sentence: {text[:200]!r}"
        found = None
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    assert time.monotonic() - start < SECONDS, f"took {time.monotonic() - start:.1f} s"
    return found


# --- JSON -----------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**6, 10**18, -1, 2**63, 1e308])
    | st.floats()
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw, documents):
    """A valid document with a value somewhere replaced, dropped or added."""
    data = json.loads(json.dumps(draw(st.sampled_from(documents))))
    for _ in range(draw(st.integers(0, 3))):
        place, keys = data, []
        while isinstance(place, (dict, list)) and place and draw(st.booleans() if keys else st.just(True)):
            key = draw(
                st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1)
            )
            keys.append((place, key))
            place = place[key]
        if not keys:
            return draw(JUNK)
        holder, key = keys[-1]
        what = draw(st.sampled_from(["replace", "drop", "add"]))
        if what == "replace":
            holder[key] = draw(JUNK)
        elif what == "drop":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=12))] = draw(JUNK)
        else:
            holder.append(draw(JUNK))
    return data


def read_schedule(text):
    made = CacheSchedule.from_json(text)
    made.scaled(7)
    return CacheSchedule.from_json(made.to_json())


def read_recipe(text):
    recipe = from_json(text)
    settings_of(recipe).schedule_for(9)
    return to_json(recipe)


def read_report(text):
    report = Report.from_json(text)
    report.text()
    return report.to_json()


MASK = Mask.from_rows([["*"], ["single.0"], ["double.0.attn"]])
RUNS = Mask.from_rows([["*"], ["double.0", "single.1"], ["double.0", "single.1"]], runs=True)
DOCUMENTS = {
    "schedules": (
        read_schedule,
        [
            dual(12, 3).to_dict(),
            json.loads(CacheSchedule.from_json(dual(6, 2).to_json()).to_json()),
            CacheSchedule("FFCA", (0.1,) * 4).to_dict(),
            MASK.schedule().to_dict(),
            RUNS.schedule().to_dict(),
        ],
    ),
    "recipes": (
        read_recipe,
        [json.loads(to_json({"name": name, **recipe})) for name, recipe in PRESETS.items()]
        + [
            {"format": 1, "kind": "cache_recipe", "mask": RUNS.to_dict()},
            {"format": 1, "kind": "cache_recipe", "kinds": "FCAC", "ratios": [0.1, 0.2, 0.3, 1], "seed": 5},
        ],
    ),
    "masks": (
        lambda text: Mask.from_json(text).scaled(5),
        [json.loads(MASK.to_json()), json.loads(RUNS.to_json())],
    ),
    "forecasts": (
        lambda text: forecast(json.loads(text)).to_dict(),
        [r["predictor"] for r in PRESETS.values() if "predictor" in r],
    ),
    "generators": (
        lambda text: from_generator(json.loads(text), 9),
        [r["generator"] for r in PRESETS.values() if "generator" in r],
    ),
    "reports": (
        read_report,
        [Report([StepRecord(0, 0, 1.0, "F", "F"), StepRecord(1, 0, 0.5, "A", "A")], steps=2).to_dict()],
    ),
}
OBJECTS = ("forecasts", "generators")
"""Their readers take objects, which other readers have read from a text."""
HOSTILE_TEXTS = [
    "",
    "null",
    "[" * 100_000,
    '{"a":' * 50_000,
    "NaN",
    "1e999",
    '"\\ud800"',
    "\x00",
    "9" * 5000,
    '{"kinds": "' + "F" * 2_000_000 + '"}',
    '{"__reduce__": ["os.system", ["true"]]}',
    "true",
    "[]",
    "{}",
]


def _explored(check, strategy, examples: int, number: int) -> str:
    """What hypothesis finds against a check: a sentence, or nothing."""
    run = given(strategy)(check)
    run = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(seed(number)(run))
    try:
        run()
    except Exception as error:  # of hypothesis, or several of ours in a group
        return str(getattr(error, "exceptions", [error])[0])[:300]
    return ""


def _refused(reader, text: str) -> str:
    try:
        reads(reader, text)
    except AssertionError as error:
        return f"{text[:20]!r}: {error}"
    return ""


def _peak() -> int:
    """Most main memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def fuzz_json(name: str, examples: int = EXAMPLES) -> Row:
    reader, documents = DOCUMENTS[name]
    seen = {"read": 0, "refused": 0}

    def check(data):
        found = reads(reader, json.dumps(data))
        seen["refused" if found is None else "read"] += 1

    before = _peak()
    wrong = _explored(check, damaged(documents), examples, 1)
    for text in HOSTILE_TEXTS if name not in OBJECTS else ():
        wrong = wrong or _refused(reader, text)
    peak = _peak() - before
    if peak > MEGABYTES:
        wrong = wrong or f"{peak} MB"
    return Row(
        f"{name} (JSON)",
        not wrong,
        wrong or f"{seen['read']} read, {seen['refused']} refused in a sentence",
        {"examples": examples + len(HOSTILE_TEXTS), "megabytes": peak},
    )


# --- safetensors ----------------------------------------------------------------------------------

VALID = {
    "format": FORMAT,
    "kind": KIND,
    "sigmas": [1.0, 0.5, 0.0],
    "identity": {"model": "m", "sampler": "euler"},
    "resampled": None,
    "modules": [],
}
TENSORS = {"grams": {"dtype": "F64", "shape": [1, 2, 2], "data_offsets": [0, 32]}}
IDENTITY = torch.eye(2, dtype=torch.float64).numpy().tobytes()
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**62, 2**64 - 1]) | st.integers(0, 9), max_size=5)


def file_of(header, data: bytes = IDENTITY, length: int | None = None) -> bytes:
    """A safetensors file with any header, and any length that it claims for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@st.composite
def crafted(draw):
    """A profile file with something wrong in its header, its metadata or its data."""
    head = draw(damaged([VALID]))
    meta = draw(st.sampled_from([json.dumps(head), json.dumps(head)[:-3], "[" * 20_000, ""]))
    tensors = dict(TENSORS)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(["grams", "grams/double.0", "grams/" + "x" * 300, "other"]))
        tensors[name] = {
            "dtype": draw(
                st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "XX"])
            ),
            "shape": draw(SHAPES),
            "data_offsets": draw(st.lists(st.sampled_from([0, 8, 32, 2**40, -1]), max_size=3)),
        }
    header = {"__metadata__": {"profile": meta}, **tensors}
    length = draw(st.sampled_from([None, None, None, 0, 7, 2**40, 2**63, 2**64 - 1]))
    return file_of(header, draw(st.sampled_from([IDENTITY, b"", IDENTITY * 3, b"\xff" * 32])), length)


WORST = {
    "a header of 16 exabytes": file_of(b"{}", b"", 2**64 - 1),
    "a million steps": file_of(
        {"__metadata__": {"profile": json.dumps({**VALID, "sigmas": [0.5] * 1_000_001})}, **TENSORS}
    ),
    "a million modules": file_of(
        {"__metadata__": {"profile": json.dumps({**VALID, "modules": ["m"] * 1_000_000})}, **TENSORS}
    ),
    "a matrix larger than the file": file_of(
        {
            "__metadata__": {"profile": json.dumps(VALID)},
            "grams": {"dtype": "F64", "shape": [1, 100_000, 100_000], "data_offsets": [0, 80_000_000_000]},
        }
    ),
    "deep metadata": file_of({"__metadata__": {"profile": "[" * 500_000}, **TENSORS}),
    "a pickle": b"\x80\x04\x95" + b"cos\nsystem\n(S'true'\ntR.",
    "a zip": b"PK\x03\x04" + b"\x00" * 64,
    "nothing": b"",
    "7 bytes": b"1234567",
    "numbers that are none": file_of(
        {"__metadata__": {"profile": json.dumps({**VALID, "sigmas": [1.0, float("nan"), 0.0]})}, **TENSORS}
    ),
    "energies of infinity": file_of(
        {"__metadata__": {"profile": json.dumps(VALID)}, **TENSORS}, struct.pack("<4d", *[float("inf")] * 4)
    ),
}


def _load(folder: Path, content: bytes, reader=Profile.load):
    path = folder / "x.profile.safetensors"
    path.write_bytes(content)
    return reader(path)


def fuzz_profiles(examples: int = EXAMPLES) -> Row:
    seen = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def check(content):
            for reader in (Profile.load, mask_files.read_scores):
                found = reads(partial(_load, folder, reader=reader), content)
                seen["refused" if found is None else "read"] += 1

        wrong = _explored(check, crafted(), examples, 2)
        assert (
            _load(folder, file_of({"__metadata__": {"profile": json.dumps(VALID)}, **TENSORS})).steps == 2
        )  # the valid one is one
        wrong = wrong or _explored(check, st.binary(max_size=400), examples // 3, 3)
    return Row(
        "profiles and routers (safetensors)",
        not wrong,
        wrong or f"{seen['read']} read, {seen['refused']} refused in a sentence",
        {"examples": examples + examples // 3},
    )


MEASURE = """
import resource, sys
from pathlib import Path
from cache_core.calibration.profile import Profile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Profile.load(Path(sys.argv[1]))
    sys.exit("it was read")
except ValueError as error:
    sys.stdout.write(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024} {error}")
"""


def crafted_file(name: str) -> Row:
    """One crafted file in a process of its own, whose peak memory tells of a blow-up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.profile.safetensors"
        path.write_bytes(WORST[name])
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
    if done.returncode:
        return Row(
            name,
            False,
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}",
        )
    megabytes, sentence = done.stdout.split(" ", 1)
    return Row(name, int(megabytes) < MEGABYTES, sentence, {"megabytes": int(megabytes)})


# --- atheris --------------------------------------------------------------------------------------


def atheris_run(target: str, seconds: int) -> Row:
    """Coverage-guided fuzzing for so long, in a process of its own, which libFuzzer ends."""
    name = f"atheris: {target}"
    if importlib.util.find_spec("atheris") is None:
        return Row(name, True, "not tried: atheris is not installed")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "stress.fuzz_target",
            target,
            f"-max_total_time={seconds}",
            "-verbosity=0",
            "-print_final_stats=1",
            "-rss_limit_mb=2048",
            "-max_len=20000",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + 300,
    )
    stats = dict(
        line.removeprefix("stat::").split(":", 1)
        for line in done.stderr.splitlines()
        if line.startswith("stat::")
    )
    tried_inputs = int(stats.get("number_of_executed_units", "0").strip())
    crashed = done.returncode != 0
    return Row(
        name,
        not crashed and tried_inputs > 0,
        done.stderr.strip().splitlines()[-1][:200] if crashed else f"{seconds} s",
        {"examples": tried_inputs},
    )


def cases(names=None, examples: int = EXAMPLES, seconds: int = 0) -> list:
    found = [(name, partial(crafted_file, name)) for name in WORST]
    found += [(f"{name} (JSON)", partial(fuzz_json, name, examples)) for name in DOCUMENTS]
    found += [("profiles and routers (safetensors)", partial(fuzz_profiles, examples))]
    if seconds:
        found += [
            (f"atheris: {target}", partial(atheris_run, target, seconds))
            for target in ("schedules", "recipes", "masks", "profiles")
        ]
    return [case for case in found if names is None or case[0] in names]


def rows(deadline: Deadline, names=None) -> Iterator[Row]:
    """One row per reader and per crafted file; atheris takes a third of the time."""
    yield from tried(
        cases(
            names, examples=max(EXAMPLES, int(5 * deadline.left)), seconds=max(10, int(deadline.left / 12))
        ),
        deadline,
    )
