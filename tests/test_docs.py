"""Help pages and locales against tests/fixtures/nodes.json, the committed snapshot of the nodes."""

import json
import re
from pathlib import Path

import pytest

from cache_core.recipes import from_preset, preset_names
from cache_core.schedule import explicit, from_generator
from demo.scenes import WORDS
from scripts.pictures import plans_svg, tokens_svg

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "web" / "docs"
NODES = json.loads((ROOT / "tests/fixtures/nodes.json").read_text(encoding="utf-8"))
LANGUAGES = ("en", "zh")


def page(node: str) -> str:
    return (DOCS / f"{node}.md").read_text(encoding="utf-8")


def section(node: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page(node), re.MULTILINE | re.DOTALL)[1]


def rows(text: str) -> dict[str, list[str]]:
    """Table rows whose first cell is in code: that cell to the others."""
    found = (re.fullmatch(r"\| `(.+?)` \|(.*)\|", line) for line in text.splitlines())
    return {m[1]: [cell.strip() for cell in m[2].split("|")] for m in found if m}


def locale(language: str, name: str = "nodeDefs") -> dict:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def test_a_page_for_every_node_and_none_else():
    assert {path.stem for path in DOCS.glob("*.md")} == set(NODES)


@pytest.mark.parametrize("node", NODES)
def test_page_has_its_parts(node):
    headings = re.findall(r"^(#+ .+)$", re.sub(r"```.*?```", "", page(node), flags=re.DOTALL), re.MULTILINE)
    assert headings[0] == f"# {locale('en')[node]['display_name']}"
    assert [h for h in headings if h != "## Presets"][1:] == ["## When to use it", "## Inputs", "## Example"]
    assert all(section(node, title).strip() for title in ("When to use it", "Inputs", "Example"))


@pytest.mark.parametrize("node", NODES)
def test_page_lists_every_input_with_its_default_and_no_other(node):
    items = re.findall(r"^- `(\w+)` \(([^)]+)\): (.+?)(?=\n- |\n\n)", section(node, "Inputs") + "\n\n", re.MULTILINE | re.DOTALL)
    assert sorted(name for name, _, _ in items) == sorted(r["name"] for r in NODES[node]["inputs"])
    for row in NODES[node]["inputs"]:
        kind, about = next((kind, about) for name, kind, about in items if name == row["name"])
        default = re.search(r", default (.+)", kind)
        if "default" not in row:
            assert default is None and kind == row["type"] + ", optional" * row.get("optional", False), row["name"]
        elif row["type"] in ("INT", "FLOAT"):
            assert float(default[1]) == row["default"], row["name"]
        else:
            assert default[1].strip("`") == (row["default"] or "empty"), row["name"]
        assert about.endswith("."), row["name"]


@pytest.mark.parametrize("node", NODES)
def test_page_names_every_output(node):
    text = section(node, "Inputs")
    assert all(f"`{output['name']}`" in text.split("**Output")[1] for output in NODES[node]["outputs"])


def test_presets_on_the_page_are_those_of_the_code():
    table = rows(section("DualCache", "Presets"))
    assert list(table) == preset_names()
    for name, (counts, about) in table.items():
        planned = from_preset(name).schedule_for(30).counts()
        assert counts == f"{planned['F']}, {planned['C']}, {planned['A']}" and about


def test_schedule_example_is_what_the_code_plans():
    text = section("CacheScheduleBuilder", "Example")
    plan = from_generator({"type": "dual", "interval": 4, "order": "CA", "ratio": 0.1, "warmup": 3, "tail": 1}, 30)
    assert f"`{plan.kinds}`" in text
    assert "{F} full, {C} conservative and {A} aggressive".format(**plan.counts()) in text
    assert explicit(re.search(r"such as `([FCA ]+)`", section("CacheScheduleBuilder", "Inputs"))[1]).steps == 10


def test_caption_page_lists_the_vocabulary():
    listed = re.findall(r"^- \w+: (.+)$", page("DualCacheDemoCaption"), re.MULTILINE)
    words = {word for line in listed for word in re.findall(r"[a-z]+", line.split(", and two")[0])}
    assert words == set(WORDS)


def test_pictures_are_there_used_and_current():
    linked = {name for node in NODES for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page(node))}
    assert linked == {path.name for path in DOCS.iterdir() if path.suffix != ".md"}
    for name, drawn in (("plans.svg", plans_svg()), ("tokens.svg", tokens_svg())):
        assert (DOCS / name).read_text(encoding="utf-8") == drawn, f"{name}: run python -m scripts.make_workflows"


@pytest.mark.parametrize("node", NODES)
def test_templates_named_in_pages_exist(node):
    for name in re.findall(r"templates? \*(\w+)\*", page(node)):
        assert (ROOT / "workflows" / f"{name}.json").exists()


@pytest.mark.parametrize("language", LANGUAGES)
def test_locale_covers_every_input_and_output(language):
    texts = locale(language)
    assert set(texts) == set(NODES)
    for node, spec in NODES.items():
        text, names = texts[node], [row["name"] for row in spec["inputs"]]
        assert text["display_name"] and text["description"]
        extra = {"control_after_generate"} if node == "DualCacheSampler" else set()
        assert set(text.get("inputs", {})) == {*names, *extra}
        assert all(text["inputs"][name]["name"] and text["inputs"][name]["tooltip"] for name in names)
        assert set(text["outputs"]) == {str(i) for i in range(len(spec["outputs"]))}
        assert all(output["name"] and output["tooltip"] for output in text["outputs"].values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_locale_covers_our_types_and_categories(language):
    texts = locale(language, "main")
    assert set(texts["dataTypes"]) == {row["type"] for spec in NODES.values() for row in spec["inputs"] + spec["outputs"]
                                       if row["type"].startswith("CACHE_")}
    assert set(texts["nodeCategories"]) == {"dual cache", "demo"}


def test_chinese_is_chinese():
    """Every text of the Chinese locale has Chinese characters, but for names that stay as they are."""
    def strings(value):
        return [s for v in value.values() for s in (strings(v) if isinstance(v, dict) else [v])]

    plain = [text for text in strings(locale("zh")) + strings(locale("zh", "main")) if not re.search(r"[一-鿿]", text)]
    assert set(plain) <= {"cfg", "Latent", "VAE", "JSON"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_locale_texts_are_safe_for_the_front_end(language):
    """The front end compiles its messages: @, |, and braces are its syntax."""
    files = (ROOT / "locales" / language).glob("*.json")
    assert not re.search(r'[@|]|: "[^"]*[{}]', "".join(path.read_text(encoding="utf-8") for path in files))
