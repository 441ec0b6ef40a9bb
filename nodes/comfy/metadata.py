"""What cached runs leave in the metadata of pictures saved after them: recipe, schedule and measured report,
in the picture's workflow.

ComfyUI hands one dict of a queued prompt, extra_pnginfo, to every node that saves a picture, and writes its
entries into the file. A hook that ComfyUI calls when a prompt is queued keeps that dict in sight; a run that
ends adds itself to the workflow in it, or beside the prompt where there is no workflow. The front end gives
the runs back to their nodes when the picture is opened."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from weakref import WeakValueDictionary

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from ...web_files import running_server

log = logging.getLogger("dual_cache")
KEY, FORMAT = "dual_cache", 1
MOST_RUNS, REMEMBERED = 8, 64
"""Runs in one picture, and runs remembered for pictures that ComfyUI makes from results it still has."""


class _Info(dict):
    """extra_pnginfo of a queued prompt, in a form that can be held weakly. It holds its prompt, so that its
    id stays its own."""

    prompt: dict


_queued: WeakValueDictionary[int, _Info] = WeakValueDictionary()
_known: OrderedDict[tuple[str, str], dict] = OrderedDict()


def listen() -> None:
    """Watches prompts that are queued at the running server, if there is one."""
    server = running_server()
    if server is not None:
        server.add_on_prompt_handler(_on_prompt)


def _on_prompt(data: dict) -> dict:
    """Takes out what an opened picture may have brought along, and puts in the runs whose results ComfyUI
    still has."""
    prompt, extra = data.get("prompt"), data.get("extra_data", {})
    info = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
    if (
        not isinstance(prompt, dict)
        or not isinstance(extra, dict)
        or not (info is None or isinstance(info, dict))
    ):
        return data
    for place in _places(info or {}):
        place.pop(KEY, None)
    if not any(
        str(node.get("class_type", "")) in NODES for node in prompt.values() if isinstance(node, dict)
    ):
        return data
    info = _Info(info or {})
    info.prompt = prompt
    data["extra_data"] = {**extra, "extra_pnginfo": info}
    _queued[id(prompt)] = info
    for node in {node for node, _ in list(_known)} & set(prompt):  # runs are added while this looks
        kept = _known.get((node, _signature(prompt, node)))
        if kept is not None:
            _put(info, node, {**kept, "earlier": True})
    return data


NODES = ("DualCache", "DualCacheSampler", "FeatureForecast")
"""Nodes that make a cached run."""


def carry(run: dict) -> None:
    """Adds a run, as `keepsake` gives it, to pictures that the executing prompt saves from now on. It never
    raises."""
    try:
        context, prompt = get_executing_context(), get_progress_state().dynprompt.original_prompt
        info = _queued.get(id(prompt))
        if context is None or info is None or info.prompt is not prompt:
            return
        node = str(context.node_id)
        _put(info, node, run)
        if node in prompt:
            mark = node, _signature(prompt, node)
            _known.pop(mark, None)
            _known[mark] = run
            while len(_known) > REMEMBERED:
                _known.popitem(last=False)
    except Exception:  # a picture must not be lost for its metadata
        log.warning("Dual Cache: the run could not be put into the picture's metadata.", exc_info=True)


def _places(info: dict) -> list[dict]:
    """Where runs can lie: in the workflow's own extra data, else beside the workflow."""
    workflow = info.get("workflow")
    extra = workflow.get("extra") if isinstance(workflow, dict) else None
    return [*([extra] if isinstance(extra, dict) else []), info]


def _put(info: dict, node: str, run: dict) -> None:
    workflow = info.get("workflow")
    if isinstance(workflow, dict):
        workflow.setdefault("extra", {})
    runs = _places(info)[0].setdefault(KEY, {"format": FORMAT, "runs": {}})["runs"]
    runs.pop(node, None)
    runs[node] = run
    for oldest in list(runs)[:-MOST_RUNS]:
        del runs[oldest]


def _signature(prompt: dict, node: str) -> str:
    """The same for two prompts that make the same of a node: its class and inputs, with all that feeds
    them."""
    seen: dict[str, list] = {}
    waiting = [node]
    while waiting:
        at = waiting.pop()
        if at in seen or not isinstance(prompt.get(at), dict):
            continue
        inputs = prompt[at].get("inputs", {})
        seen[at] = [prompt[at].get("class_type"), inputs]
        waiting += [
            str(v[0])
            for v in inputs.values()
            if isinstance(v, list) and len(v) == 2 and not isinstance(v[0], (list, dict))
        ]
    return hashlib.sha256(json.dumps(seen, sort_keys=True, default=str).encode()).hexdigest()
