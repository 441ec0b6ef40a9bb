"""Help pages and locales against tests/fixtures/nodes.json, the committed snapshot of the nodes."""

import json
import re
from pathlib import Path

import pytest

from cache_core.recipes import from_json, from_preset, settings_of
from cache_core.schedule.plan import explicit, from_generator
from demo.sampler import sample
from demo.scenes import WORDS
from demo.weights import load_transformer
from tools.graphs import memory
from tools.help_tables import TABLES, cells_of
from tools.translations import lags

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
NODES = json.loads((ROOT / "tests/fixtures/nodes.json").read_text(encoding="utf-8"))
LANGUAGES = ("en", "zh")
CHINESE = {
    "When to use it": "何时使用",
    "Inputs": "输入",
    "Example": "示例",
    "Presets": "预设",
    "Forecasts": "预测方式",
    "Levels": "层级",
}


def page(node: str, language: str = "") -> str:
    """A help page: in English, or in another language where the front end looks first."""
    return (DOCS / (f"{node}/{language}.md" if language else f"{node}.md")).read_text(encoding="utf-8")


def section(node: str, title: str, language: str = "") -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page(node, language), re.MULTILINE | re.DOTALL)[1]


def locale(language: str, name: str = "nodeDefs") -> dict:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def test_a_page_for_every_node_and_none_else():
    assert {path.stem for path in DOCS.glob("*.md")} == set(NODES)
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.glob("*/*")} == {
        f"{node}/zh.md" for node in NODES
    }


@pytest.mark.parametrize("node", NODES)
def test_page_has_its_parts(node):
    headings = re.findall(r"^(#+ .+)$", re.sub(r"```.*?```", "", page(node), flags=re.DOTALL), re.MULTILINE)
    assert headings[0] == f"# {locale('en')[node]['display_name']}"
    own = ("## Presets", "## Forecasts", "## Levels")
    assert [h for h in headings if h not in own][1:] == ["## When to use it", "## Inputs", "## Example"]
    assert all(section(node, title).strip() for title in ("When to use it", "Inputs", "Example"))


@pytest.mark.parametrize("node", NODES)
def test_page_lists_every_input_with_its_default_and_no_other(node):
    items = re.findall(
        r"^- `(\w+)` \(([^)]+)\): (.+?)(?=\n- |\n\n)",
        section(node, "Inputs") + "\n\n",
        re.MULTILINE | re.DOTALL,
    )
    assert sorted(name for name, _, _ in items) == sorted(r["name"] for r in NODES[node]["inputs"])
    for row in NODES[node]["inputs"]:
        kind, about = next((kind, about) for name, kind, about in items if name == row["name"])
        default = re.search(r", default (.+)", kind)
        if "default" not in row:
            assert default is None and kind == row["type"] + ", optional" * row.get("optional", False), row[
                "name"
            ]
        elif row["type"] in ("INT", "FLOAT"):
            assert float(default[1]) == row["default"], row["name"]
        elif row["type"] == "BOOLEAN":
            assert default[1] == ("on" if row["default"] else "off"), row["name"]
        else:
            assert default[1].strip("`") == (row["default"] or "empty"), row["name"]
        assert about.endswith("."), row["name"]


@pytest.mark.parametrize("node", NODES)
def test_page_names_every_output(node):
    text = section(node, "Inputs")
    assert all(f"`{output['name']}`" in text.split("**Output")[1] for output in NODES[node]["outputs"])


def current(node: str) -> str:
    """The Chinese page of a node; empty where it says that it is older than the English one."""
    text = page(node, "zh")
    return "" if lags(text) else text


@pytest.mark.parametrize("node", NODES)
def test_chinese_page_says_what_the_english_one_says(node):
    """Same parts, names in code, pictures, templates, tables, examples and numbers, unless the page says that
    it is older. Descriptions in tables are compared with nothing."""

    def parts(text):
        text = re.sub(r"<!--.*?-->", "", text)
        text = re.sub(r"^(\| `.+?` \| [^|]*\|).*", r"\1", text, flags=re.MULTILINE)
        blocks, prose = (
            re.findall(r"```.*?```", text, re.DOTALL),
            re.sub(r"```.*?```", "", text, flags=re.DOTALL),
        )
        templates = {
            name for name in re.findall(r"\*(\w+)\*", prose) if (ROOT / "workflows" / f"{name}.json").exists()
        }
        tables = {key: cells[0] for key, cells in cells_of(prose).items() if re.match(r"[\d, ]+$", cells[0])}
        names, numbers = set(re.findall(r"`([^`\n]+)`", prose)), set(re.findall(r"\d+(?:\.\d+)?", prose))
        numbers.discard("1300")  # 1300 万 are 13 million
        numbers.discard("13")
        return (
            blocks,
            templates,
            list(cells_of(prose)),
            tables,
            names,
            numbers,
            re.findall(r"\]\(([^)]+)\)", prose),
        )

    english, chinese = page(node), current(node)
    assert page(node, "zh").startswith(f"# {locale('zh')[node]['display_name']}\n")
    if not chinese:
        return
    assert parts(chinese) == parts(english)
    assert re.findall(r"^## (.+)$", chinese, re.MULTILINE) == [
        CHINESE[title] for title in re.findall(r"^## (.+)$", english, re.MULTILINE)
    ]


@pytest.mark.parametrize("node", NODES)
def test_chinese_page_lists_every_input_as_the_node_shows_it(node):
    if not current(node):
        return
    inputs = section(node, "输入", "zh") + "\n\n"
    items = re.findall(r"^- `(\w+)` (\S+?)（([^）]+)）：(.+?)(?=\n- |\n\n)", inputs, re.MULTILINE | re.DOTALL)
    names = {
        name: text["name"]
        for name, text in locale("zh")[node].get("inputs", {}).items()
        if name != "control_after_generate"
    }
    assert {name: shown for name, shown, _, _ in items} == names
    english = dict(re.findall(r"^- `(\w+)` \((.+?)\): ", section(node, "Inputs"), re.MULTILINE))
    for name, _, kind, about in items:
        default = re.search(r", default (.+)", english[name])
        known = {None: "", "empty": "，默认为空", "on": "，默认开", "off": "，默认关"}
        wanted = known.get(default and default[1], f"，默认 {default and default[1]}")
        assert kind.endswith(wanted) and about.strip().endswith("。"), name
        assert ("默认" in kind, "可选" in kind) == (default is not None, "optional" in english[name]), name


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_table_has_its_descriptions(name, language):
    node, make = TABLES[name]
    table = cells_of(page(node, "" if language == "en" else language))
    listed = list(make({}, language))
    assert set(listed) <= set(table) and all(cell for key in listed for cell in table[key])


def test_report_example_is_what_the_code_writes():
    """All but the times, as far as the example shows the run."""
    head, *table = re.search(r"```\n(.*?)\n```", page("CacheReport"), re.DOTALL)[1].split("\n\n")[0:2]
    shown = table[0].splitlines()
    levels = [float(row.split()[1]) for row in shown[1:]]
    plan = explicit(from_preset("balanced").schedule_for(30).kinds[: len(levels)])
    report = sample(
        load_transformer(),
        ["a large red heart center on a checkered white background"],
        sigmas=[*levels, 0.867],
        settings=from_preset("balanced", plan),
    ).report
    text = report.text()
    for line in (line for line in head.splitlines() if line.startswith(("predictor", "cached"))):
        assert line in text.splitlines()
    assert re.search(r"^worst forecast error \S+ \(1 is as large as the feature\)$", head, re.MULTILINE)

    def columns(lines):
        return [[*row[:5], *row[6:]] for row in (line.split() for line in lines)]  # no times

    wanted, made = columns(shown), columns(text.split("\n\n")[1].splitlines())
    assert [row[:7] for row in wanted] == [row[:7] for row in made]


def test_the_mask_on_the_page_is_a_recipe():
    text = re.search(r"```json\n(.*?)```", section("FeatureForecast", "Levels"), re.DOTALL)[1]
    mask = settings_of(from_json(text)).mask
    assert mask.names == ("double.0.attn", "single.7") and mask.kinds.count("F") == 3


def test_schedule_example_is_what_the_code_plans():
    text = section("CacheScheduleBuilder", "Example")
    plan = from_generator(
        {"type": "dual", "interval": 4, "order": "CA", "ratio": 0.1, "warmup": 3, "tail": 1}, 30
    )
    assert f"`{plan.kinds}`" in text
    assert "{F} full, {C} conservative and {A} aggressive".format(**plan.counts()) in text
    assert (
        explicit(re.search(r"such as `([FCA ]+)`", section("CacheScheduleBuilder", "Inputs"))[1]).steps == 10
    )


def test_caption_page_lists_the_vocabulary():
    listed = re.findall(r"^- \w+: (.+)$", page("DualCacheDemoCaption"), re.MULTILINE)
    words = {word for line in listed for word in re.findall(r"[a-z]+", line.split(", and two")[0])}
    assert words == set(WORDS)


def test_pictures_are_there_and_used():
    linked = {name for node in NODES for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page(node))}
    assert linked == {path.name for path in DOCS.iterdir() if path.is_file() and path.suffix != ".md"}


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
        extra = {"control_after_generate"} if node in ("DualCacheSampler", "CacheCompare") else set()
        assert set(text.get("inputs", {})) == {*names, *extra}
        assert all(text["inputs"][name]["name"] and text["inputs"][name]["tooltip"] for name in names)
        assert set(text["outputs"]) == {str(i) for i in range(len(spec["outputs"]))}
        assert all(output["name"] and output["tooltip"] for output in text["outputs"].values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_locale_covers_our_types_and_categories(language):
    texts = locale(language, "main")
    assert set(texts["dataTypes"]) == {
        row["type"]
        for spec in NODES.values()
        for row in spec["inputs"] + spec["outputs"]
        if row["type"].startswith("CACHE_")
    }
    assert set(texts["nodeCategories"]) == {"dual cache", "demo"}


def test_chinese_is_chinese():
    """Every text of the Chinese locale has Chinese characters, but for names that stay as they are."""

    def strings(value):
        return [s for v in value.values() for s in (strings(v) if isinstance(v, dict) else [v])]

    plain = [
        text
        for text in strings(locale("zh")) + strings(locale("zh", "main"))
        if not re.search(r"[一-鿿]", text)
    ]
    assert set(plain) <= {"cfg", "Latent", "VAE", "CLIP", "JSON"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_locale_texts_are_safe_for_the_front_end(language):
    """The front end compiles its messages: @, |, and braces are its syntax."""
    files = (ROOT / "locales" / language).glob("*.json")
    assert not re.search(r'[@|]|: "[^"]*[{}]', "".join(path.read_text(encoding="utf-8") for path in files))


def test_the_flux_template_tells_what_the_caches_hold():
    note = (ROOT / "workflows/flux_dev_text_to_image.json").read_text(encoding="utf-8")
    assert f"hold {memory('duca', 28)} at 1024 x 1024; *balanced* holds {memory('balanced', 28)}." in note
