"""Writes docs/families.md from the registry and tests/fixtures/families.json, which the tests in each
ComfyUI check.

Run `python -m tools.regenerate` from the project's folder after a change of either; a test compares the
committed page with the result."""

from __future__ import annotations

import json
from pathlib import Path

from cache_core.base.names import LEVELS, NAMES
from cache_core.models.block_spec import Family
from cache_core.models.capabilities import abilities
from cache_core.models.read_rows import READ_ROWS
from cache_core.models.registry import FAMILIES

ROOT = Path(__file__).parents[1]
PAGE, FOUND = ROOT / "docs" / "families.md", ROOT / "tests" / "fixtures" / "families.json"
READ = [row.name for row in READ_ROWS]
MODELS = {
    "FLUX": "FLUX.1 dev, schnell, Fill, Kontext; LongCat-Image, Ovis-Image",
    "FLUX.2": "FLUX.2 dev, Klein",
    "HunyuanVideo": "HunyuanVideo 1, SkyReels, HunyuanImage 2.1 and its refiner",
    "HunyuanVideo 1.5": "HunyuanVideo 1.5",
    "Wan": "Wan 2.1 and 2.2: text, image, first and last frame, Fun, camera, HuMo, SCAIL, 5B",
    "Lumina2, Z-Image": "Lumina Image 2.0, Z-Image, NewBie",
    "Qwen-Image": "Qwen-Image, Edit, Layered",
    "SD3": "Stable Diffusion 3 and 3.5",
    "PixelDiT": "PixelDiT, PiD",
    "PixArt": "PixArt alpha and sigma",
    "Stable Audio": "Stable Audio 1 and 3",
    "LTX-2": "LTX-2 and 2.5, video and sound",
    "MiniMax H3": "MiniMax H3, video and sound",
    "Kandinsky 6": "Kandinsky 6, video and sound",
    "Prism": "Prism, video and sound",
    "Mage-Flow": "Mage-Flow, and its edit model",
    "JoyImage": "JoyAI-Image-Edit",
}


def _cell(row: Family, abilities: list[str] | None) -> str:
    if abilities is None:
        return "not in it"
    return "sampled plainly" if row.refusal else ", ".join(abilities)


def _read(rows: dict[str, Family]) -> list[str]:
    """What the page says of rows that no ComfyUI of the tests has."""
    return [
        "Read, not run: the rows of these models follow their source in ComfyUI up to 0.38, and the tests "
        "run them on models of the same",
        "call shape, not on these models themselves. The self-check of a run decides.",
        "",
        *(f"- {MODELS.get(name, name)}: {', '.join(abilities(rows[name]))}." for name in READ),
    ]


def page() -> str:
    """The page as Markdown."""
    found = json.loads(FOUND.read_text(encoding="utf-8"))
    rows = {row.name: row for row in reversed(FAMILIES) if not row.name.endswith("(embedded)")}
    lines = [
        "# Models that Dual Cache knows",
        "",
        "Made by `python -m tools.regenerate`. The tests run a tiny random model of every row, but for "
        "those that are sampled plainly,",
        "in each ComfyUI version of this table.",
        "",
        "What aggressive steps put back, by level:",
        "",
        *(f"- `{level}`: {NAMES[level]}" for level in LEVELS),
        "",
        "`tokens` marks models whose conservative steps refresh single tokens; elsewhere a conservative "
        "step runs in full. But for FLUX",
        "and the models built like it, only the MLPs are refreshed, and tokens are chosen at random or "
        "by staleness. A level that",
        "a model lacks gives way to a coarser one. A model that is not in this table is cached at its "
        "output. The report says so in each",
        "case. Masks, which name modules to compute (`block.3.attn`), work where `module` stands. Value "
        "norms of tokens and live attention",
        "are for FLUX and the models built like it.",
        "",
        'Of a model that is not in this table a recipe with `"detect": true` (Feature Forecast takes it '
        "as text) has the blocks found:",
        "the one list of at least four equal modules that holds more than half of the weights, each "
        "taking one tensor of tokens first and",
        "giving it back alone. Such a model is cached at `final` or `output` only: the self-check sees "
        "the whole stack, but not whether",
        "every block of an unknown model does the same. This is experimental; a guess that it does not "
        "confirm "
        "ends at the model's output.",
        "",
        "On the first full step of a run a self-check looks whether the blocks are what this table says, "
        "which costs about as much as one",
        "skipped step. At `block` and `module`, and for conservative steps, one block of every sort runs "
        "once more on what was kept of it",
        "and is compared with what it gave; at `final` and `stack` the model runs once more without its "
        "blocks, the true end put back,",
        "and is compared with its own output. At `output` there is nothing to check. Where it does not "
        "fit, the run goes on at the next",
        "coarser level (module, block, final, output), conservative steps run in full, and the report "
        "says so.",
        "",
        f"| family | models | {' | '.join(f'ComfyUI {v}' for v in found)} |",
        f"|---|---|{'---|' * len(found)}",
    ]
    for name in sorted(set(rows) - set(READ), key=str.lower):
        cells = [_cell(rows[name], version.get(name)) for version in found.values()]
        lines.append(f"| {name} | {MODELS.get(name, name)} | {' | '.join(cells)} |")
    lines += ["", *_read(rows)]
    why = [
        (row.name, row.refusal or f"only its output is cached, because {row.output_only}")
        for row in rows.values()
        if row.refusal or row.output_only
    ]
    lines += [
        "",
        *(f"- {name}: {reason}." for name, reason in sorted(why)),
        "- Wan that makes a video part by part (self forcing, sampler `ar_video`): sampled plainly, as "
        "its sampler keeps keys and",
        "  values of its own.",
        "- HunyuanVideo with a mask on its text: conservative steps and the level `module` run in full.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
