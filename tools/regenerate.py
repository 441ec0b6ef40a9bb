"""Makes everything that can be derived from the code and from committed results, and prints what changed.

    python -m tools.regenerate                      writes the files
    python -m tools.regenerate --check              writes nothing; names what is stale and exits with 1

It needs neither ComfyUI nor a network. These parts need more and run only when they are asked for:

    python -m tools.regenerate translated NODE ...  records that the translated help pages of these nodes
                                                    follow the English ones as they are now
    python -m tools.regenerate snapshots FOLDER     tests/fixtures/nodes.json and families.json, from a
                                                    ComfyUI folder (COMFYUI_PYTHON: its Python, where it has
                                                    no .venv or venv)
    python -m tools.regenerate workflows ADDRESS    workflows/, subgraphs/ and their pictures, from a running
                                                    ComfyUI of the oldest supported version"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import calibrated, forecasts, masks, measured, overhead, rivals, transfer
from bench.rivals_page import with_table
from stress import page as stress
from tools import families_page, help_tables, memory_page, node_snapshot, pictures, presets_js, translations
from tools import schedule_fixtures as schedules

ROOT = Path(__file__).resolve().parents[1]
DOCS = help_tables.DOCS


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _english_pages() -> dict[Path, str]:
    return {path: help_tables.with_tables(_read(path), path.stem) for path in sorted(DOCS.glob("*.md"))}


def _translated_pages(up_to_date: Sequence[str] = ()) -> dict[Path, str]:
    """Every translated page with its tables and marks. up_to_date: nodes whose pages follow the English
    ones as they are now."""
    made = {}
    for page, english in _english_pages().items():
        for path in sorted((DOCS / page.stem).glob("*.md")):
            text = help_tables.with_tables(_read(path), page.stem, path.stem)
            made[path] = translations.marked(text, english, path.stem, page.stem in up_to_date)
    return made


def _measured_pages() -> dict[Path, str]:
    """The pages of the benches, the measured table and the measurements of recipes, from bench/results."""
    benches = (calibrated, forecasts, masks, overhead, transfer, rivals)
    made = {bench.PAGE: bench.page(json.loads(_read(bench.RESULTS))) for bench in benches}
    made[rivals.MEASUREMENTS] = with_table(_read(rivals.MEASUREMENTS), json.loads(_read(rivals.RESULTS)))
    made[measured.RECIPES] = measured.with_measurements(_read(measured.RECIPES))
    return made


PARTS: dict[str, Callable[[], dict[Path, str]]] = {
    "measurements": _measured_pages,
    "presets": lambda: {path: make() for path, make in presets_js.FILES.items()},
    "schedules": lambda: {schedules.FIXTURE: schedules.render(schedules.build())},
    "options": lambda: {
        node_snapshot.NODES: node_snapshot.render_nodes(
            node_snapshot.with_options(json.loads(_read(node_snapshot.NODES)))
        )
    },
    "help": _english_pages,
    "translated help": _translated_pages,
    "pictures": lambda: {
        DOCS / "plans.svg": pictures.plans_svg(),
        DOCS / "tokens.svg": pictures.tokens_svg(),
    },
    "families": lambda: {families_page.PAGE: families_page.page()},
    "memory": lambda: {memory_page.PAGE: memory_page.page()},
    "stress": lambda: {stress.PAGE: stress.page(json.loads(_read(stress.RESULTS)))},
}
"""Name of a part: what makes its files, as path to text. In this order, as later parts read earlier ones."""


def stale(part: str) -> dict[Path, str]:
    """The files of a part that differ from what they should be, with what they should be."""
    made = PARTS[part]()
    return {path: text for path, text in made.items() if not path.exists() or _read(path) != text}


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def regenerate(check: bool) -> int:
    """Writes or names what is stale; gives the exit status."""
    found = 0
    for part in PARTS:
        for path, text in stale(part).items():
            found += 1
            if not check:
                path.write_text(text, encoding="utf-8")
            print(f"{'stale' if check else 'written'}: {_relative(path)} ({part})")
    if not found:
        print("Everything is up to date.")
    elif check:
        print("Run `python -m tools.regenerate` and commit what it writes.")
    return int(check and bool(found))


def translated(nodes: Sequence[str]) -> int:
    """Records that the translated pages of these nodes are up to date; gives the exit status."""
    unknown = [node for node in nodes if not (DOCS / f"{node}.md").exists()]
    if unknown:
        print(f"web/docs has no page of {', '.join(unknown)}.")
        return 1
    for path, text in _translated_pages(nodes).items():
        if path.parent.name in nodes and _read(path) != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: {_relative(path)}")
    return 0


def snapshots(folder: str) -> int:
    """Runs tools.node_snapshot with the Python of a ComfyUI; gives the exit status."""
    found = (
        Path(folder, env, rest) for env in (".venv", "venv") for rest in ("bin/python", "Scripts/python.exe")
    )
    python = os.environ.get("COMFYUI_PYTHON") or next((str(path) for path in found if path.exists()), "")
    if not python:
        print(f"{folder} has no .venv or venv; set COMFYUI_PYTHON to its Python.")
        return 1
    environment = {**os.environ, "COMFYUI_UNDER_TEST": str(Path(folder).resolve())}
    return subprocess.run([python, "-m", "tools.node_snapshot"], cwd=ROOT, env=environment).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.regenerate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing, name what is stale")
    commands = parser.add_subparsers(dest="command", metavar="translated|snapshots|workflows")
    commands.add_parser("translated").add_argument("nodes", nargs="+", metavar="NODE")
    commands.add_parser("snapshots").add_argument("folder", metavar="FOLDER")
    commands.add_parser("workflows").add_argument("address", metavar="ADDRESS")
    asked = parser.parse_args(arguments)
    if asked.command == "translated":
        return translated(asked.nodes)
    if asked.command == "snapshots":
        return snapshots(asked.folder)
    if asked.command == "workflows":
        from tools import workflows

        workflows.main([asked.address])
        return 0
    return regenerate(asked.check)


if __name__ == "__main__":
    sys.exit(main())
