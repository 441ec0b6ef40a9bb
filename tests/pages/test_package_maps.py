"""The maps of folders in their docstrings name every file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["cache_core", "bench"])
def test_the_map_of_a_folder_names_every_file(folder):
    text = (ROOT / folder / "__init__.py").read_text()
    told = text[: text.index('"""', 3)]
    files = {p.stem for p in (ROOT / folder).glob("*.py")} - {"__init__"}
    assert not [name for name in sorted(files) if not re.search(rf"\b{name}\b", told)]
