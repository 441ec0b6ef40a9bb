"""What all tests share: folders that need a host are left out without it, long tests without --long, and the
end of a run says so.

scripts/test.sh runs each such folder by itself and tells this file through the environment which parts did
not run or failed. With pytest-xdist the workers collect, so they send what they left out to the process that
prints the summary."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import pytest
import torch

torch.set_num_threads(1)  # models this small gain nothing from more, and workers share the cores

HERE = Path(__file__).resolve().parent
NEEDS = {
    "comfy": ("COMFYUI_UNDER_TEST",),
    "imports": ("COMFYUI_UNDER_TEST",),
    "browser": ("COMFYUI_UNDER_TEST", "CHROMIUM_UNDER_TEST"),
}
NOT_COLLECTED = pytest.StashKey[list]()
LEFT_OUT = pytest.StashKey[int]()
"""How many tests were left out because they take long."""


class _EntryPoint:
    """The repository's own __init__.py is ComfyUI's entry point: pytest must not import it as the package
    that holds the tests."""

    @staticmethod
    def pytest_collect_directory(path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == HERE.parent else None


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="run the tests marked long too; scripts/stress.sh sets it"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "long: slow and rarely breaking; runs with --long only")
    config.stash[NOT_COLLECTED], config.stash[LEFT_OUT] = [], 0
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


def pytest_collection_modifyitems(config, items):
    """Leaves long tests out unless --long asks for them."""
    if config.getoption("--long"):
        return
    left = [item for item in items if item.get_closest_marker("long")]
    config.stash[LEFT_OUT] = len(left)
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def pytest_sessionfinish(session):
    """A worker of pytest-xdist sends what it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]
        session.config.workeroutput["not_collected"] = session.config.stash[NOT_COLLECTED]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """What a worker of pytest-xdist sent; each of them collects everything."""
    sent, stash = getattr(node, "workeroutput", {}), node.config.stash
    stash[LEFT_OUT] = max(stash[LEFT_OUT], sent.get("left_out", 0))
    stash[NOT_COLLECTED] += [x for x in sent.get("not_collected", ()) if x not in stash[NOT_COLLECTED]]


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
    if config.stash[LEFT_OUT]:
        not_run = [*not_run, f"{config.stash[LEFT_OUT]} long tests: add --long, as scripts/stress.sh does"]
    for title, lines in (
        ("did not run", not_run),
        ("failed before", os.environ.get("DUAL_CACHE_FAILED", "").splitlines()),
    ):
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.line(line)
