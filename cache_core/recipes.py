"""Named methods as data: each recipe of `recipes.json` names its parts and its source, and builds
`CacheConfig`.

A recipe is what the nodes offer and what users share. Its fields, all but the plan optional:
about, source    sentences for people
measured         the measurement behind it: a file of bench/results, what was sampled, PSNR in dB to plain
                 sampling, median / worst
experimental     true where nothing has been measured yet; the help page says so
generator        the plan for any number of steps, as `schedule.plan.from_generator` reads it, or
kinds            a list of steps that is scaled to the run, perhaps with ratios, the share of tokens of each
                 of them, or
mask             which modules are computed at which steps, as `schedule.masks.Mask` reads it; with runs the
                 level has no effect
level, first     where aggressive steps put features back, as in `CacheConfig`
predictor, module_predictor    as `predictors.build.forecast` reads them
selector, attention, ratio, text_ratio, seed    of conservative steps
speedup          where a profile of the model is found: what a plan from it is made for, in place of the
                 recipe's own
detect           whether the blocks of a model that the registry does not know are looked for (experimental)
streams          "reuse" by the name of a stream, img or audio, that is put back as it last was, not forecast;
                 for models of video and sound, at the levels final, stack and output
least_steps      in shorter runs nothing is skipped, unless a schedule is given
families         by name of a model family: fields that differ for its models
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

from .base.wording import named
from .config import CacheConfig
from .predictors.build import forecast
from .schedule.masks import Mask
from .schedule.plan import CacheSchedule, explicit, from_generator
from .selectors.token_selection import Selector

FORMAT, KIND = 1, "cache_recipe"
_PLAIN = (
    "level",
    "first",
    "attention",
    "ratio",
    "text_ratio",
    "seed",
    "speedup",
    "detect",
    "streams",
    "least_steps",
)
_PLANS = ("generator", "kinds", "mask")
_PARTS = (*_PLANS, "ratios", "predictor", "module_predictor", "selector", *_PLAIN)
_TEXTS = ("about", "source", "measured")
_LONGEST = 2000

PRESETS: dict[str, dict] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def preset_names() -> list[str]:
    """Names of the recipes that come with the pack, the recommended one first."""
    return list(PRESETS)


def preset(name: str) -> dict:
    """The recipe of a name; ValueError names what is known."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}.")
    return PRESETS[name]


def from_preset(name: str, schedule: CacheSchedule | None = None, **changes) -> CacheConfig:
    """The config of a named recipe, its plan replaced by `schedule` when one is given, and any field of
    CacheConfig by `changes`.

    Raises ValueError for an unknown name.
    """
    return settings_of({"name": name, **preset(name)}, schedule, **changes)


def settings_of(recipe: Mapping, schedule: CacheSchedule | None = None, **changes) -> CacheConfig:
    """The config of a recipe; `changes` replace fields of CacheConfig, for every family alike. ValueError in
    one sentence, naming the field."""
    _check(recipe)
    name = recipe.get("name", "custom")
    own = _settings(recipe, name, schedule, changes)
    families = recipe.get("families", {})
    if not isinstance(families, Mapping):
        raise ValueError("families must be an object that names model families.")
    special = {}
    for family, part in families.items():
        if not isinstance(part, Mapping):
            raise ValueError(f"families.{named(family)} must be an object.")
        _known(part, _PARTS, f"families.{named(family)}")
        _check_numbers(part, f"families.{named(family)}.")
        rest = {k: v for k, v in recipe.items() if not (k in (*_PLANS, "ratios") and set(_PLANS) & set(part))}
        _check_plan({**rest, **part}, f"families.{named(family)}")
        special[family] = _settings({**rest, **part}, name, schedule, changes)
    return replace(own, families=special)


def _settings(recipe: Mapping, name: str, schedule: CacheSchedule | None, changes: Mapping) -> CacheConfig:
    parts = {key: recipe[key] for key in _PLAIN if key in recipe}
    for key in ("predictor", "module_predictor"):
        if key in recipe:
            parts[key] = forecast(recipe[key])
    if "selector" in recipe:
        parts["selector"] = _selector(recipe["selector"])
    if "kinds" in recipe:
        parts["schedule"] = explicit(recipe["kinds"], recipe.get("ratios", 0.1))
    elif "mask" in recipe:
        parts["mask"] = Mask.read(recipe["mask"])
    elif "generator" in recipe:
        parts["generator"] = from_generator(recipe["generator"], 1).generator
    if schedule is not None:
        parts.update(**parts_of_plan(schedule), speedup=None)
        if schedule.forecast is not None:
            name = schedule.name
    return CacheConfig(**{"method": name, **parts, **changes})


def parts_of_plan(schedule: CacheSchedule) -> dict:
    """The fields of CacheConfig that a plan brings: itself, its mask or none, and the forecast that was
    solved for it, if any."""
    mask = None if schedule.mask is None else Mask.from_json(schedule.mask)
    if mask is not None and mask.kinds != schedule.kinds:
        raise ValueError("mask must give the kinds of its schedule.")
    solved = {}
    if schedule.forecast is not None:
        rule = forecast(json.loads(schedule.forecast))
        solved = {"level": "output" if rule.probe == "latent" else "final", "predictor": rule}
    return {"schedule": schedule, "mask": mask, **solved}


def _selector(data) -> Selector:
    if not isinstance(data, Mapping):
        raise ValueError("selector must be an object.")
    _known(data, [f.name for f in fields(Selector)], "selector")
    return Selector(**data)


def _check(recipe) -> None:
    if not isinstance(recipe, Mapping):
        raise ValueError("recipe must be a JSON object.")
    _known(recipe, (*_PARTS, *_TEXTS, "experimental", "name", "families"), "a recipe")
    if not isinstance(recipe.get("experimental", False), bool):
        raise ValueError("experimental must be true or false.")
    for key in ("name", *_TEXTS):
        if not isinstance(recipe.get(key, ""), str) or len(recipe.get(key, "")) > _LONGEST:
            raise ValueError(f"{key} must be a text of at most {_LONGEST} letters.")
    _check_plan(recipe)
    _check_numbers(recipe)


def _check_plan(recipe: Mapping, whose: str = "a recipe") -> None:
    where = "" if whose == "a recipe" else f"{whose}."
    if sum(plan in recipe for plan in _PLANS) != 1:
        raise ValueError(f"{whose} must have either a generator, kinds or a mask.")
    ratios = recipe.get("ratios", [])
    if "ratios" in recipe and not ("kinds" in recipe and isinstance(ratios, list)):
        raise ValueError(f"{where}ratios must be a list of numbers beside kinds, one for each.")


def _check_numbers(part: Mapping, where: str = "") -> None:
    for key, least, most in (("speedup", 1, 100), ("ratio", 0, 1), ("text_ratio", 0, 1)):
        value = part.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most
        ):
            raise ValueError(f"{where}{key} must be a number from {least} to {most}.")
    seed = part.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise ValueError(f"{where}seed must be a whole number from 0 to {(1 << 32) - 1}.")


def _known(data: Mapping, known, what: str) -> None:
    for key in data:
        if key not in known:
            raise ValueError(f"{named(key)} is not a field of {what}; it has {', '.join(known)}.")


def recipe_of(settings: CacheConfig) -> dict:
    """The recipe that gives these settings, without what it says for other families."""
    whole = CacheConfig()
    plan = (
        {"mask": settings.mask.to_dict()}
        if settings.mask is not None
        else (
            {"kinds": settings.schedule.kinds}
            if settings.schedule is not None
            else {"generator": dict(settings.generator)}
        )
    )
    listed = settings.schedule if settings.mask is None and settings.ratio is None else None
    ratios = list(listed.ratios) if listed is not None else []
    parts = {"ratio": ratios[0]} if len(set(ratios)) == 1 else {"ratios": ratios} if ratios else {}
    parts |= {key: getattr(settings, key) for key in _PLAIN if getattr(settings, key) != getattr(whole, key)}
    parts |= {
        key: part.to_dict()
        for key in ("predictor", "module_predictor")
        if (part := getattr(settings, key)) is not None
    }
    return {"name": settings.method, **plan, **parts, "selector": asdict(settings.selector)}


def to_json(recipe: Mapping) -> str:
    """A recipe as text to save and share; ValueError where it is none."""
    settings_of(recipe)
    return json.dumps(
        {"format": FORMAT, "kind": KIND, **recipe}, indent=1, ensure_ascii=False, allow_nan=False
    )


def from_json(text: str) -> dict:
    """The recipe that `to_json` wrote, or that somebody wrote by hand; ValueError in one sentence."""
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("recipe is not valid JSON.") from None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ValueError(f'kind must be "{KIND}": this is no recipe.')
    if data.get("format") != FORMAT:
        raise ValueError(f"format must be {FORMAT}; other versions of the recipe cannot be read.")
    recipe = {k: v for k, v in data.items() if k not in ("format", "kind")}
    settings_of(recipe)
    return recipe
