"""What a run tells while it goes on and when it has ended: the browser, by events on a node, and ComfyUI's
log."""

from __future__ import annotations

import logging

from comfy_execution.utils import get_executing_context

from ...cache_core.controller import Controller
from ...cache_core.report.run_report import Report
from ...web_files import running_server
from .failures import only_logged

log = logging.getLogger("dual_cache")


def send(event: str, data: dict) -> None:
    """Sends an event to the browser that has queued the prompt, when a server is running, with the id of that
    prompt. It never raises."""
    instance = running_server()
    if instance is not None:
        context = get_executing_context()
        prompt = context.prompt_id if context else getattr(instance, "last_prompt_id", None)
        with only_logged("sending an event to the browser"):
            instance.send_sync(event, {**data, "prompt_id": prompt}, getattr(instance, "client_id", None))


def show(sentence: str, node_id: str | None) -> None:
    """Shows a sentence on a node when a server is running."""
    instance = running_server()
    if instance is not None and node_id is not None:
        with only_logged("showing a sentence on a node"):
            instance.send_progress_text(sentence, node_id)


def send_steps(run, source: Controller | Report) -> None:
    """Sends the records of evaluations that have ended since the last time."""
    if run.request.node_id is None:
        return
    done = source.records if isinstance(source, Report) else source.done
    for record in done[run.sent :]:
        send(
            "dual_cache.step",
            {"node": run.request.node_id, "steps": run.controller.steps, "record": record.to_dict()},
        )
    run.sent = len(done)


def tell(report: Report, node_id: str | None) -> None:
    """Sends the report of a run that has ended, and puts it into the log in a few lines."""
    totals = report.totals()
    log.info(
        "Dual Cache (%s): %d full, %d conservative, %d aggressive evaluations in %.1f s.",
        report.method,
        totals["full"],
        totals["conservative"],
        totals["aggressive"],
        report.wall_seconds,
    )
    for sentence in dict.fromkeys(
        [*report.messages, None if report.method == "off" else report.why_nothing()]
    ):
        if sentence:
            log.info("Dual Cache: %s", sentence)
    if node_id is not None:
        send("dual_cache.report", {"node": node_id, "report": report.to_dict(), "text": report.text()})
