"""The tables of the help pages that list what the code has: presets, forecasts and levels.

Each page holds a table between two comments, `<!-- table: presets -->` and `<!-- end of table -->`. The
first columns come from the code. The description of a preset is the field `about` of its recipe. Descriptions
of forecasts and levels, and all descriptions of the translated pages, are written by hand: a row keeps the
one it has, and a new row starts with the English text or with the source that the code names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cache_core.base.names import LEVELS
from cache_core.base.names import NAMES as LEVEL_TEXTS
from cache_core.predictors.build import NAMES
from cache_core.predictors.extrapolation import MEMBERS
from cache_core.recipes import PRESETS, from_preset

DOCS = Path(__file__).parents[1] / "web" / "docs"
STEPS = 30
END = "<!-- end of table -->"
EXPERIMENTAL = {"en": "(experimental)", "zh": "（实验性）"}
BY_PROFILE = {"en": "{best} by a profile, else {usual}", "zh": "有分析时 {best}，否则 {usual}"}


def begin(name: str) -> str:
    """The comment before a table."""
    return f"<!-- table: {name} -->"


def cells_of(table: str) -> dict[str, list[str]]:
    """The rows of a Markdown table whose first cell is in code: that cell to the others."""
    found = (re.fullmatch(r"\| `(.+?)` \|(.*)\|", line) for line in table.splitlines())
    return {m[1]: [cell.strip() for cell in m[2].split("|")] for m in found if m}


def counts_of(preset: str, language: str = "en") -> str:
    """Full, conservative and aggressive steps of a preset's 30."""
    settings = from_preset(preset)
    usual = "{F}, {C}, {A}".format(**settings.schedule_for(STEPS).counts())
    if settings.speedup is None:
        return usual
    full = round(STEPS / settings.speedup)
    return BY_PROFILE[language].format(best=f"{full}, 0, {STEPS - full}", usual=usual)


def about(preset: str) -> str:
    """What the page says of a preset: the field `about` of its recipe."""
    recipe = PRESETS[preset]
    return f"{recipe['about']} {EXPERIMENTAL['en']}" if recipe.get("experimental") else recipe["about"]


def _presets(old: dict[str, list[str]], language: str) -> dict[str, list[str]]:
    rows = {}
    for name, recipe in PRESETS.items():
        text = about(name)
        if language != "en" and name in old:
            mark = EXPERIMENTAL[language]
            text = old[name][-1].removesuffix(mark).rstrip()
            text += mark if recipe.get("experimental") else ""
        rows[name] = [counts_of(name, language), text]
    return rows


def _forecasts(old: dict[str, list[str]], language: str) -> dict[str, list[str]]:
    return {name: old.get(name) or [MEMBERS[name].source if name in MEMBERS else ""] for name in NAMES}


def _levels(old: dict[str, list[str]], language: str) -> dict[str, list[str]]:
    return {level: old.get(level) or [LEVEL_TEXTS[level], ""] for level in LEVELS}


Rows = Callable[[dict[str, list[str]], str], dict[str, list[str]]]
TABLES: dict[str, tuple[str, Rows]] = {
    "presets": ("DualCache", _presets),
    "forecasts": ("FeatureForecast", _forecasts),
    "levels": ("FeatureForecast", _levels),
}
"""Name of a table: the node whose page holds it, and what makes its rows of those that it has."""


def with_tables(page: str, node: str, language: str = "en") -> str:
    """A help page with its tables as the code has them; ValueError where the page has no place for one."""
    for name, (owner, rows) in TABLES.items():
        if owner != node:
            continue
        before, mark, rest = page.partition(begin(name))
        table, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"The {language} page of {node} must hold {begin(name)} and {END}.")
        head, rule = table.strip().splitlines()[:2]
        made = [
            "| " + " | ".join([f"`{key}`", *cells]) + " |"
            for key, cells in rows(cells_of(table), language).items()
        ]
        page = "\n".join([f"{before}{mark}", "", head, rule, *made, "", f"{end}{after}"])
    return page
