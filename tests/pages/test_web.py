"""What the scripts in web/ must not do."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "web").rglob("*.js"))

# What the registry forbids, and what would let a page act beyond the node that it draws. `{import(` is a type
# in a comment.
FORBIDDEN = {
    "runs text as code": r"\beval\s*\(|\bnew\s+Function\b|\bFunction\s*\(|(?<!\{)\bimport\s*\("
    r"|set(?:Timeout|Interval)\s*\(\s*[\"'`]",
    "uses the network": r"\bfetch(?:Api)?\s*\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|https?://"
    r"|\bnew\s+(?:Image|Worker)\b",
    "writes markup": r"innerHTML|outerHTML|insertAdjacentHTML|document\.write",
    "stores data in the browser": r"localStorage|sessionStorage|indexedDB|document\.cookie",
}


def test_scripts_are_found():
    assert {"schedule.js", "plot.js", "widget.js"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("sin", FORBIDDEN)
def test_no_script(path, sin):
    found = re.search(FORBIDDEN[sin], path.read_text(encoding="utf-8"))
    assert found is None, f"{path.name} {sin}: {found.group()}"


@pytest.mark.parametrize(
    "text",
    ["eval('1')", "new Function('a')", "import('./x.js')", "fetch('/x')", "fetchApi(1)", "e.innerHTML = 1"],
)
def test_forbidden_patterns_match(text):
    assert any(re.search(pattern, text) for pattern in FORBIDDEN.values())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_imports_stay_inside(path):
    """Scripts import each other and the two modules that ComfyUI serves for extensions."""
    for target in re.findall(
        r"^(?:import|export)\b[^;]*?\bfrom\s+\"([^\"]+)\"", path.read_text(encoding="utf-8"), re.MULTILINE
    ):
        inside = target.startswith("./") and (path.parent / target).is_file()
        assert inside or target in ("../../scripts/app.js", "../../scripts/api.js"), target
