"""What all tests share: folders that need a host are left out without it, and the end of a run says so.

scripts/test.sh runs each such folder by itself and tells this file through the environment which parts did
not run or failed."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NEEDS = {"comfy": ("COMFYUI_UNDER_TEST",), "browser": ("COMFYUI_UNDER_TEST", "CHROMIUM_UNDER_TEST")}
NOT_COLLECTED = pytest.StashKey[list]()


class _EntryPoint:
    """The repository's own __init__.py is ComfyUI's entry point: pytest must not import it as the package
    that holds the tests."""

    @staticmethod
    def pytest_collect_directory(path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == HERE.parent else None


def pytest_configure(config):
    config.stash[NOT_COLLECTED] = []
    config.pluginmanager.register(
        _EntryPoint()
    )  # as a plugin, since a conftest's own hooks see only the folders below it


def pytest_ignore_collect(collection_path, config):
    """Leaves a folder out while a variable it needs is unset."""
    missing = [name for name in NEEDS.get(collection_path.name, ()) if not os.environ.get(name)]
    if collection_path.parent != HERE or not missing:
        return None
    asked_for = (Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args)
    if any(collection_path.is_relative_to(path) for path in asked_for):
        config.stash[NOT_COLLECTED].append(
            f"tests/{collection_path.name}: {' and '.join(missing)} not set; scripts/test.sh sets it"
        )
    return True


@pytest.fixture
def unchecked(monkeypatch):
    """No self-check, for tests that count what a run does to the model."""
    from cache_core.hooks.self_check import SelfCheck
    from cache_core.hooks.shims import shim

    @contextmanager
    def plainly(self, model, shims):
        with ExitStack() as stack:
            for part, maker in shims:
                stack.enter_context(shim(part, maker))
            yield

    monkeypatch.setattr(SelfCheck, "around", plainly)


def pytest_terminal_summary(terminalreporter, config):
    """Prints, before pytest's own last line, each part that failed or did not run, and why."""
    reported = os.environ.get("DUAL_CACHE_NOT_RUN")
    not_run = config.stash[NOT_COLLECTED] if reported is None else reported.splitlines()
    for title, lines in (
        ("did not run", not_run),
        ("failed before", os.environ.get("DUAL_CACHE_FAILED", "").splitlines()),
    ):
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.line(line)
