"""Committed files are what `python -m tools.regenerate` makes, a stale one is named, and a translated page
that lags says so."""

import json

import pytest

from cache_core.recipes import settings_of
from tools import help_tables, node_snapshot, regenerate, translations

ENGLISH = "# Title\n\nText.\n"
CHINESE = "# 标题\n\n正文。\n"


@pytest.mark.parametrize("part", regenerate.PARTS)
def test_committed_files_are_up_to_date(part):
    stale = [path.relative_to(regenerate.ROOT).as_posix() for path in regenerate.stale(part)]
    assert not stale, f"{', '.join(stale)}: run `python -m tools.regenerate`"


@pytest.fixture
def one_part(tmp_path, monkeypatch):
    """A regenerate whose only part makes one file, and that file."""
    path = tmp_path / "page.md"
    monkeypatch.setattr(regenerate, "ROOT", tmp_path)
    monkeypatch.setattr(regenerate, "PARTS", {"page": lambda: {path: "new"}})
    return path


def test_check_names_what_is_stale_and_writes_nothing(one_part, capsys):
    one_part.write_text("old", encoding="utf-8")
    assert regenerate.main(["--check"]) == 1
    assert "stale: page.md (page)" in capsys.readouterr().out
    assert one_part.read_text(encoding="utf-8") == "old"


def test_the_command_writes_what_is_stale_and_says_so(one_part, capsys):
    assert regenerate.main([]) == 0
    assert capsys.readouterr().out == "written: page.md (page)\n"
    assert one_part.read_text(encoding="utf-8") == "new"
    assert regenerate.main(["--check"]) == 0
    assert capsys.readouterr().out == "Everything is up to date.\n"


def test_help_names_the_parts_that_need_comfyui(capsys):
    with pytest.raises(SystemExit):
        regenerate.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ("snapshots", "workflows", "nodes.json", "families.json"))


def test_a_translated_page_says_that_it_lags_until_it_is_brought_up_to_date():
    first = translations.marked(CHINESE, ENGLISH, "zh")
    assert not translations.lags(first) and translations.plain(first) == CHINESE
    changed = ENGLISH + "More.\n"
    late = translations.marked(first, changed, "zh")
    assert translations.lags(late) and late.split("\n")[2] == translations.NOTES["zh"]
    assert translations.marked(late, changed, "zh") == late and translations.plain(late) == CHINESE
    done = translations.marked(late, changed, "zh", up_to_date=True)
    assert not translations.lags(done) and translations.plain(done) == CHINESE
    assert translations.marked(late, ENGLISH, "zh") == first


def test_a_new_preset_and_a_new_forecast_get_rows_and_the_others_keep_theirs(monkeypatch):
    recipe = {"about": "New.", "generator": {"type": "full"}, "experimental": True}
    monkeypatch.setitem(help_tables.PRESETS, "mine", recipe)
    monkeypatch.setattr(help_tables, "NAMES", ("linear", "fresh"))
    table = "| preset | n | text |\n|---|---|---|"
    page = f"x\n{help_tables.begin('presets')}\n\n{table}\n\n{help_tables.END}\ny"
    rows = help_tables.cells_of(help_tables.with_tables(page, "DualCache"))
    assert rows["mine"] == ["30, 0, 0", "New. (experimental)"]
    assert help_tables._forecasts({"linear": ["a line"]}, "en") == {"linear": ["a line"], "fresh": [""]}
    chinese = help_tables.cells_of(help_tables.with_tables(page, "DualCache", "zh"))
    assert chinese["mine"][1] == "New. (experimental)"


def test_a_recipe_may_be_experimental():
    recipe = {"generator": {"type": "full"}, "experimental": True}
    assert settings_of(recipe) == settings_of({"generator": {"type": "full"}})
    with pytest.raises(ValueError, match="experimental must be true or false"):
        settings_of({**recipe, "experimental": "yes"})


def test_a_page_without_the_place_for_its_table_is_refused():
    with pytest.raises(ValueError, match="must hold <!-- table: presets -->"):
        help_tables.with_tables("# Title\n", "DualCache")


def test_option_lists_grow_with_the_registry_and_never_lose_a_name(monkeypatch):
    nodes = json.loads(node_snapshot.NODES.read_text(encoding="utf-8"))
    grown = {**node_snapshot.REGISTRIES, "forecast": (*node_snapshot.NAMES, "fresh")}
    monkeypatch.setattr(node_snapshot, "REGISTRIES", grown)
    made = node_snapshot.with_options(nodes)

    def options(nodes, node):
        return next(row["options"] for row in nodes[node]["inputs"] if row["name"] == "forecast")

    assert options(made, "FeatureForecast") == [*options(nodes, "FeatureForecast"), "fresh"]
    assert options(made, "DualCache") == options(nodes, "DualCache")
    monkeypatch.setattr(node_snapshot, "REGISTRIES", {"forecast": node_snapshot.NAMES[:-1]})
    with pytest.raises(ValueError, match="Saved workflows may hold forecast"):
        node_snapshot.with_options(nodes)
