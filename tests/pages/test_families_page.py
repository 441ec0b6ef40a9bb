"""docs/families.md and the rows of the registry name the same families."""

import json

from cache_core.models.registry import FAMILIES
from cache_core.recipes import from_preset, preset_names
from tools import families_page as make_families


def test_every_row_is_in_some_version_and_the_other_way_round():
    found = {
        name
        for version in json.loads(make_families.FOUND.read_text(encoding="utf-8")).values()
        for name in version
    }
    read = set(make_families.READ)
    assert not found & read
    assert found | read == {row.name for row in FAMILIES if not row.name.endswith("(embedded)")}
    assert set(make_families.MODELS) <= found | read


def test_presets_have_settings_for_known_families_alone():
    assert {name for preset in preset_names() for name in from_preset(preset).families} <= {
        row.name for row in FAMILIES
    }
