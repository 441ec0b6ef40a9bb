"""What cached runs leave in the metadata of pictures saved after them: recipe, schedule and measured report,
in the picture's workflow.

ComfyUI hands one dict of a queued prompt, extra_pnginfo, to every node that saves a picture, and the node
writes its entries into the file. A hook that ComfyUI calls when a prompt is queued replaces that dict by one
that shows each node the runs which made its picture: those of the samplers that the node depends on, and of a
list the run of the same item. Where that cannot be told, it shows none. The front end gives the runs back to
their nodes when the picture is opened."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from ...web_files import running_server
from . import executing

log = logging.getLogger("dual_cache")
KEY, FORMAT = "dual_cache", 1
MOST_RUNS, REMEMBERED = 8, 64
"""Runs in one picture, and nodes whose runs are remembered for pictures that ComfyUI makes from results it
still has."""


@dataclass(frozen=True)
class _Made:
    """A run of the prompt.

    data: what pictures carry of it.
    node: that sampled.
    root: the node of the queued prompt that `node` comes from, itself where it was in the prompt.
    index: of the item of a list.
    before: nodes from the same root that `node` depends on.
    """

    data: dict
    node: str
    root: str
    index: int
    before: frozenset[str]


class _Info(dict):
    """extra_pnginfo of a queued prompt, with the runs that made what the executing node gets.

    prompt: the queued prompt, held so that its id stays its own. runs: all of it so far."""

    prompt: dict
    runs: list[_Made]

    def _refresh(self) -> None:
        """Puts the runs of the executing node's pictures where they belong. It never raises."""
        try:
            _write(self, _runs_of_picture(self))
        except Exception:  # a picture must not be lost for its metadata
            log.warning("Dual Cache: no run was put into the picture's metadata.", exc_info=True)

    def __getitem__(self, key):
        self._refresh()
        return super().__getitem__(key)

    def get(self, key, default=None):
        self._refresh()
        return super().get(key, default)

    def __contains__(self, key):
        self._refresh()
        return super().__contains__(key)

    def __iter__(self):
        self._refresh()
        return super().__iter__()

    def __len__(self):
        self._refresh()
        return super().__len__()

    def keys(self):
        self._refresh()
        return super().keys()

    def values(self):
        self._refresh()
        return super().values()

    def items(self):
        self._refresh()
        return super().items()

    def copy(self) -> dict:
        return dict(self.items())

    __copy__ = copy

    def __deepcopy__(self, memo) -> dict:
        return copy.deepcopy(dict(self.items()), memo)

    def __reduce__(self):
        return dict, (dict(self.items()),)


_queued: WeakValueDictionary[int, _Info] = WeakValueDictionary()
_known: OrderedDict[tuple[str, str], list[_Made]] = OrderedDict()


def listen() -> None:
    """Watches prompts that are queued at the running server, if there is one."""
    server = running_server()
    if server is not None:
        server.add_on_prompt_handler(_on_prompt)


def _on_prompt(data: dict) -> dict:
    """Takes out what an opened picture may have brought along, and adds the runs whose results ComfyUI still
    has."""
    prompt, extra = data.get("prompt"), data.get("extra_data", {})
    info = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
    if (
        not isinstance(prompt, dict)
        or not isinstance(extra, dict)
        or not (info is None or isinstance(info, dict))
    ):
        return data
    for where in _places(info or {}):
        where.pop(KEY, None)
    info = _Info(info or {})
    info.prompt, info.runs = prompt, []
    data["extra_data"] = {**extra, "extra_pnginfo": info}
    _queued[id(prompt)] = info
    for node in {node for node, _ in list(_known)} & set(prompt):  # runs are added while this looks
        for made in _known.get((node, _signature(prompt, node)), ()):
            info.runs.append(replace(made, data={**made.data, "earlier": True}))
    return data


def carry(run: dict) -> None:
    """Adds a run, as `metadata_of_run` gives it, to what pictures of the executing prompt can carry. It never
    raises."""
    try:
        here = executing.place()
        if here is None:
            return
        info = _queued.get(id(here.graph.original_prompt))
        if info is None or info.prompt is not here.graph.original_prompt:
            return
        root = str(here.graph.get_real_node_id(here.node))
        same = [m for m in info.runs if m.root == root and "earlier" not in m.data]
        others = {m.node for m in same if m.node != here.node}
        before = frozenset(others & set(executing.upstream(here.graph, here.node)) if others else ())
        made = _Made(run, here.node, root, here.index, before)
        info.runs = [m for m in info.runs if m.root != root] + same + [made]
        if root in info.prompt:
            mark = root, _signature(info.prompt, root)
            _known.pop(mark, None)
            _known[mark] = [*same, made]
            while len(_known) > REMEMBERED:
                _known.popitem(last=False)
    except Exception:  # a picture must not be lost for its metadata
        log.warning("Dual Cache: the run could not be put into the picture's metadata.", exc_info=True)


def _runs_of_picture(info: _Info) -> dict[str, dict]:
    """The runs that made what the executing node gets, by the node of the prompt that sampled."""
    here = executing.place() if info.runs else None
    if here is None or here.graph.original_prompt is not info.prompt:
        return {}
    sources = executing.upstream(here.graph, here.node)
    by_root: dict[str, list[_Made]] = {}
    for made in info.runs:
        if made.node in sources or made.root in sources:
            by_root.setdefault(made.root, []).append(made)
    found = {}
    for root, runs in by_root.items():
        by_node: dict[str, list[_Made]] = {}
        for made in runs:
            by_node.setdefault(made.node, []).append(made)
        last = [node for node in by_node if not any(node in made.before for made in runs)]
        if len(last) == 1:  # else several runs of one node have a part in the picture
            own = by_node[last[0]]
            if sources.get(last[0], False):  # item by item
                own = [made for made in own if made.index == here.index]
            if len(own) == 1:
                found[root] = own[0].data
    return found


def _places(info: dict) -> list[dict]:
    """Where runs can lie: in the workflow's own extra data, else beside the workflow."""
    workflow = dict.get(info, "workflow")
    extra = workflow.get("extra") if isinstance(workflow, dict) else None
    return [*([extra] if isinstance(extra, dict) else []), info]


def _write(info: _Info, runs: dict[str, dict]) -> None:
    """Replaces the runs in a prompt's extra_pnginfo."""
    workflow = dict.get(info, "workflow")
    if runs and isinstance(workflow, dict):
        workflow.setdefault("extra", {})
    first, *others = _places(info)
    for where in others:
        dict.pop(where, KEY, None)
    if runs:
        kept = {"format": FORMAT, "runs": dict(list(runs.items())[-MOST_RUNS:])}
        if dict.get(first, KEY) != kept:
            dict.__setitem__(first, KEY, kept)
    else:
        dict.pop(first, KEY, None)


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
