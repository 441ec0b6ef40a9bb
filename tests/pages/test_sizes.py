"""No function over 60 lines, no file over 400, in what the pack ships."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES, MOST_IN_FUNCTION = 400, 60
FILES = sorted(
    path
    for folder in ("cache_core", "nodes", "web")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".js") and path.name != "presets.js"  # a table that tools.regenerate writes
)
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
"""Exceptions, as path and as path:function. They must be too long: one that no longer is has to go."""


def functions_of(path: Path) -> dict[str, int]:
    """Lines of every function of a Python file, decorators and docstring included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def scripts_functions(path: Path) -> dict[str, int]:
    """Lines of every function and method of a formatted script, from its first line to the brace that stands
    under it."""
    lines, found = path.read_text(encoding="utf-8").splitlines(), {}
    for i, line in enumerate(lines):
        head = re.match(
            r"(\s*)(?:export )?(?:default )?(?:async )?(?:static )?"
            r"(?:function\*? ?(\w*)|(?:get |set )?#?(\w+))"
            r"\s*\(.*\{$|(\s*)(?:export )?const (\w+) = (?:async )?\(?.*\)? =>.*\{$",
            line,
        )
        if head is None or re.match(r"\s*(?:if|for|while|switch|catch|return|else)\b", line):
            continue
        indent, name = head[1] or head[4] or "", head[2] or head[3] or head[5] or "function"
        end = next((j for j in range(i + 1, len(lines)) if lines[j].startswith(indent + "}")), i)
        found[name] = max(found.get(name, 0), end - i + 1)
    return found


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def too_long(path: Path) -> set[str]:
    """The functions of a file that are too long, as path:function."""
    found = functions_of(path) if path.suffix == ".py" else scripts_functions(path)
    return {f"{named(path)}:{name}" for name, lines in found.items() if lines > MOST_IN_FUNCTION}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_file_is_too_long(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert (lines > MOST_LINES) == (named(path) in LONG_FILES), f"{lines} lines"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_function_is_too_long(path):
    assert too_long(path) == {name for name in LONG_FUNCTIONS if name.split(":")[0] == named(path)}


def test_long_functions_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    body = "\n".join(["    pass"] * MOST_IN_FUNCTION)
    (tmp_path / "a.py").write_text(f"def short():\n    pass\n\n\ndef long():\n{body}\n", encoding="utf-8")
    rows = "\n".join(["  work();"] * MOST_IN_FUNCTION)
    script = (
        f"export function long() {{\n{rows}\n}}\nconst arrow = (a) => {{\n{rows}\n}};\nfunction b() {{\n}}\n"
    )
    (tmp_path / "a.js").write_text(script, encoding="utf-8")
    assert too_long(tmp_path / "a.py") == {"a.py:long"}
    assert too_long(tmp_path / "a.js") == {"a.js:long", "a.js:arrow"}
