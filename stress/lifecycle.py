"""Runs that end badly, models that are shared, bypassed, deleted and unloaded: is plain sampling afterwards
that of a fresh process?"""

from __future__ import annotations

import ctypes
import gc
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, partial

from . import embedded  # noqa: F401  (before all of ComfyUI)

import comfy.model_management as management  # isort: skip
import torch  # isort: skip
from torch.utils._python_dispatch import TorchDispatchMode  # isort: skip

from . import fresh  # isort: skip
from .embedded import CAPTIONS, cached, caption, model, sample  # isort: skip
from .rows import Deadline, Row, tried  # isort: skip

POINTS = 20
OPTIONS = {"cfg": 2.0, "seed": 5, "steps": 6}
RUNS = {
    "plain": {**OPTIONS},
    "balanced": {"preset": "balanced", **OPTIONS},
    "duca": {"preset": "duca", **OPTIONS},
    "another prompt": {"preset": "balanced", "caption": CAPTIONS[1], **OPTIONS},
}
GROWTH = 0.01
"""Share by which resident memory may differ afterwards."""


@cache
def references() -> dict:
    """The same runs in a fresh process."""
    return dict(zip(RUNS, fresh.latents(list(RUNS.values()))))


def resident() -> int:
    """Bytes of this process in main memory, after all that can be given back has been."""
    gc.collect()
    with suppress(OSError, AttributeError):  # no glibc: nothing to trim
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Trouble(Exception):
    """Raised once; the self-check of a first full step repeats what ends in errors that code for other blocks
    would raise, this one not."""


class AtOperation(TorchDispatchMode):
    """Raises at the n-th operation of torch, or counts them all."""

    def __init__(self, n: int | None = None, error: BaseException | None = None):
        super().__init__()
        self.count, self._n, self._error = 0, n, error

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self._n:
            raise self._error
        return func(*args, **(kwargs or {}))


def _expect(error: type[BaseException], run) -> bool:
    """Whether the run ended with the error; ComfyUI may also catch it and go on."""
    try:
        run()
    except error:
        return True
    return False


def queued_twice(_):
    patched = cached(model(), "duca")
    return torch.equal(sample(patched, **OPTIONS), sample(patched, **OPTIONS)), "two equal results"


def prompt_changed(_):
    patched = cached(model())
    sample(patched, **OPTIONS)
    other = sample(patched, caption(CAPTIONS[1]), **OPTIONS)
    return torch.equal(other, references()["another prompt"]), "as in a fresh process"


def bypassed(_):
    sample(cached(model()), **OPTIONS)
    return torch.equal(sample(model(), **OPTIONS), references()["plain"]), "as in a fresh process"


def two_clones(_):
    one, two = cached(model(), "balanced"), cached(model(), "duca")
    same = all(
        torch.equal(sample(m, **OPTIONS), references()[name])
        for m, name in ((one, "balanced"), (two, "duca"), (one, "balanced"), (two, "duca"))
    )
    return same, "each by its own settings"


def deleted(_):
    """The node goes while its run goes on: the last reference outside the sampler is dropped."""
    held = [cached(model())]

    def drop(step, *_):
        if step == 3:
            held.clear()
            gc.collect()

    out = sample(held[0], callback=drop, **OPTIONS)
    return not held and torch.equal(out, references()["balanced"]), "the run ends as it would have"


def unloaded(_):
    patched = cached(model())
    first = sample(patched, **OPTIONS)
    management.unload_all_models()
    management.soft_empty_cache()
    return torch.equal(first, sample(patched, **OPTIONS)), "two equal results"


def unloaded_in_the_middle(_):
    def unload(step, *_):
        if step == 4:
            management.free_memory(1e30, torch.device("cpu"))
            management.soft_empty_cache()

    return torch.equal(
        sample(cached(model()), callback=unload, **OPTIONS), references()["balanced"]
    ), "the run ends as it would have"


def interrupted(rng):
    step = rng.randrange(OPTIONS["steps"])

    def stop(now, *_):
        if now == step:
            raise management.InterruptProcessingException

    patched = cached(model(), rng.choice(["balanced", "duca"]))
    ended = _expect(
        management.InterruptProcessingException, lambda: sample(patched, callback=stop, **OPTIONS)
    )
    return ended, f"at step {step}"


def raised_in_a_block(rng):
    net, patched = model().model.diffusion_model, cached(model(), rng.choice(["balanced", "duca"]))
    block = rng.choice([*net.double_blocks, *net.single_blocks])
    count, at = [0], rng.randrange(1, 6)

    def fail(*_):
        count[0] += 1
        if count[0] == at:
            raise Trouble

    handle = block.register_forward_pre_hook(fail)
    try:
        ended = _expect(Trouble, lambda: sample(patched, **OPTIONS))
    finally:
        handle.remove()
    return ended or count[0] < at, f"at call {at} of a block"


@cache
def operations() -> int:
    with AtOperation() as counted:
        sample(cached(model(), "duca"), **OPTIONS)
    return counted.count


def out_of_memory(rng):
    at = rng.randrange(1, operations() + 1)
    full = management.OOM_EXCEPTION("out of memory, as asked for")

    def run():
        with AtOperation(at, full):
            sample(cached(model(), "duca"), **OPTIONS)

    survived = "" if _expect(management.OOM_EXCEPTION, run) else ", which ComfyUI survived"
    return True, f"at operation {at} of {operations()}{survived}"


SCENES = {
    "queued twice": (queued_twice, 1),
    "only the prompt changed": (prompt_changed, 1),
    "node bypassed": (bypassed, 1),
    "two clones, two settings": (two_clones, 1),
    "node deleted while sampling": (deleted, 1),
    "models unloaded between": (unloaded, 1),
    "memory freed in the middle": (unloaded_in_the_middle, 1),
    "interrupted at random": (interrupted, POINTS),
    "error in a random block": (raised_in_a_block, POINTS),
    "out of memory at a random operation": (out_of_memory, POINTS),
}


def leftovers() -> str:
    """What a run has left on the model, or nothing."""
    found = [name for name, module in model().model.named_modules() if "forward" in module.__dict__]
    return f"{found[0]} keeps a forward of ours" if found else ""


def try_scene(name: str, times: int | None = None, memory: bool = True) -> Row:
    """One scene so many times, each followed by plain sampling; then a cached run, and the memory."""
    scene, own = SCENES[name]
    rng, wrong, said, want = random.Random(name), [], "", references()
    before = 0
    for i in range(times or own):
        held, said = scene(rng)
        if i == 0 and memory:
            sample(model(), **OPTIONS)
            before = resident()  # what a first run loads for good is not counted
        if not held:
            wrong.append(f"not {said}")
        if not torch.equal(sample(model(), **OPTIONS), want["plain"]):
            wrong.append(f"plain sampling differs afterwards ({said})")
        wrong += [left for left in (leftovers(),) if left]
    if memory and (times or own) == 1:
        scene(rng)
        sample(model(), **OPTIONS)
    numbers = {"times": times or own}
    if memory:
        grown = (resident() - before) / before
        numbers["memory"] = grown
        if abs(grown) > GROWTH:
            wrong.append(f"memory changed by {grown:.1%}")
    for preset in ("balanced", "duca"):
        if not torch.equal(sample(cached(model(), preset), **OPTIONS), want[preset]):
            wrong.append(f"{preset} differs afterwards")
    fine = said if numbers["times"] == 1 else f"as in a fresh process after each of {numbers['times']}"
    return Row(name, not wrong, "; ".join(dict.fromkeys(wrong)) or fine, numbers)


def cases(names=None, **how) -> list:
    return [(name, partial(try_scene, name, **how)) for name in SCENES if names is None or name in names]


def rows(deadline: Deadline, names=None) -> Iterator[Row]:
    """One row per scene, after a round that loads what stays."""
    for preset in ("balanced", "duca"):
        sample(cached(model(), preset), **OPTIONS)
    yield from tried(cases(names), deadline)
