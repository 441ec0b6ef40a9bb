"""Hundreds of queued runs against one ComfyUI server: does memory grow, is a picture wrong, is a thread
left?"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from statistics import median

from .rows import Deadline, Row
from .server import node, pictures, same, serving

RUNS, EVERY = 500, 20
GROWTH = 0.02
"""Share by which the median resident memory of the last quarter may exceed that of the second."""
SAMPLERS = (
    "euler",
    "heun",
    "dpmpp_2m",
    "dpmpp_sde",
    "euler_ancestral",
    "uni_pc",
    "heunpp2",
    "lcm",
    "dpm_adaptive",
)
PRESETS = (
    "off",
    "balanced",
    "quality",
    "fast",
    "adaptive",
    "planned",
    "duca",
    "toca",
    "fora",
    "taylorseer",
    "hyca",
    "dicache",
    "spectrum",
)
CAPTIONS = (
    "a large red heart center on a checkered white background",
    "a small blue star left on a plain black background",
    "",
)


def graph(rng: random.Random, steps: int | None = None) -> dict:
    """A run with random settings, through Dual Cache Sampler or through Dual Cache and KSampler."""
    common = {
        "seed": rng.randrange(1 << 32),
        "steps": steps or rng.randint(1, 7),
        "cfg": rng.choice([1.0, 2.0]),
        "sampler_name": rng.choice(SAMPLERS),
        "scheduler": rng.choice(["simple", "beta", "karras", "normal"]),
        "positive": ["2", 0],
        "negative": ["3", 0],
        "latent_image": ["4", 0],
        "denoise": rng.choice([1.0, 1.0, 0.6]),
    }
    caching = {
        "preset": rng.choice(PRESETS),
        "forecast": rng.choice(["from preset", "from preset", "linear"]),
        "gain": 0.9,
    }
    if caching["preset"] == "dicache":
        caching["forecast"] = "from preset"
    nodes = {
        "1": node("DualCacheDemoModel"),
        "2": node("DualCacheDemoCaption", caption=rng.choice(CAPTIONS[:2])),
        "3": node("DualCacheDemoCaption", caption=""),
        "4": node(
            "EmptySD3LatentImage",
            width=rng.choice([32, 64, 96]),
            height=rng.choice([32, 64]),
            batch_size=rng.choice([1, 1, 2]),
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 1]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="soak"),
    }
    if rng.random() < 0.5:
        return {
            **nodes,
            "5": node("DualCacheSampler", model=["1", 0], **caching, **common),
            "8": node("CacheReport", report=["5", 1]),
        }
    return {
        **nodes,
        "5": node("KSampler", model=["10", 0], **common),
        "10": node("DualCache", model=["1", 0], **caching),
        "8": node("CacheReport", model=["10", 0], latent=["5", 0]),
    }


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def rows(deadline: Deadline, runs: int = RUNS) -> Iterator[Row]:
    """Four rows: the runs, their pictures, memory, threads. The comparison in a fresh server takes the last
    fifth of the time."""
    rng, kept, memory, count = random.Random(7), [], [], []
    total, failed, stopped, reserve = 0, [], 0, deadline.left / 5
    with serving() as server:
        pid = server.process.pid
        while total < runs and deadline.left > reserve:
            total += 1
            if rng.random() < 0.1:
                messages, _ = server.queue(graph(rng, steps=40), interrupt_at="dual_cache.step")
                stopped += messages[-1][0] == "execution_interrupted"
            else:
                asked = graph(rng)
                messages, outputs = server.queue(asked)
                if messages[-1][0] != "execution_success" or "7" not in outputs:
                    wrong = [
                        data.get("exception_message", "")
                        for kind, data in messages
                        if kind == "execution_error"
                    ]
                    failed.append(f"run {total} ({asked['5']['inputs']}): {wrong[:1]}")
                elif total // EVERY > len(kept):
                    kept.append((asked, pictures(server, outputs)))
            if total % 10 == 0:
                memory.append(resident(pid))
                count.append(threads(pid))
    said = "; ".join(failed[:2])[:300] or f"{total} of {runs} runs, {stopped} of them interrupted"
    yield Row(
        "queued runs",
        not failed and total > 0,
        said + ("" if total == runs else ", as the time was over"),
        {"runs": total, "interrupted": stopped},
    )
    quarter = max(1, len(memory) // 4)
    early, late = median(memory[quarter : 2 * quarter] or memory), median(memory[-quarter:])
    grown = (late - early) / early
    said = f"{early / 1e6:.0f} MB in the second quarter of the runs, {late / 1e6:.0f} in the last"
    yield Row("memory", grown <= GROWTH, said, {"growth": grown})
    settled = max(count[quarter : 2 * quarter] or count)
    yield Row(
        "threads",
        count[-1] <= settled,
        f"{count[-1]} at the end, at most {settled} in the second quarter",
        {"threads": count[-1]},
    )
    compared, differ = 0, []
    with serving() as server:
        for asked, seen in reversed(kept):
            if deadline.left <= 0 and compared:
                break
            compared += 1
            if not same(pictures(server, server.queue(asked)[1]), seen):
                differ.append(str({k: v for k, v in asked["5"]["inputs"].items() if not isinstance(v, list)}))
    left = f", {len(kept) - compared} not for lack of time" if compared < len(kept) else ""
    yield Row(
        "pictures",
        not differ and compared > 0,
        "; ".join(differ)[:300] or f"{compared} equal to those of a fresh server{left}",
        {"compared": compared},
    )
