"""The node that ComfyUI executes now, and how nodes of its graph depend on each other.

A node may expand into further nodes while it runs; these have ids such as 12.0.1, and the browser knows only
the node that they come from."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from comfy_execution.graph_utils import is_link
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context


class Graph(Protocol):
    """What is used of ComfyUI's DynamicPrompt: a queued prompt and the nodes made while it runs."""

    @property
    def original_prompt(self) -> dict:
        """The queued prompt."""
        raise NotImplementedError

    def has_node(self, node_id: str) -> bool:
        """Whether there is a node with this id."""
        raise NotImplementedError

    def get_node(self, node_id: str) -> dict:
        """A node's class and inputs."""
        raise NotImplementedError

    def get_real_node_id(self, node_id: str) -> str:
        """The id of the node of the queued prompt that a node comes from."""
        raise NotImplementedError


class Place(NamedTuple):
    """What is executed now.

    node: its id.
    index: of the item, where ComfyUI runs a node once per item of a list.
    graph: ComfyUI's DynamicPrompt, which holds the nodes made while running too.
    """

    node: str
    index: int
    graph: Graph


def place() -> Place | None:
    """What is executed now; None outside of a running prompt."""
    context, graph = get_executing_context(), get_progress_state().dynprompt
    if context is None or context.node_id is None or not graph.has_node(str(context.node_id)):
        return None
    return Place(str(context.node_id), context.list_index or 0, graph)


def display_id(node_id: str | None) -> str | None:
    """The id of the node that the browser shows for a node of the running prompt."""
    return node_id if node_id is None else str(get_progress_state().dynprompt.get_display_node_id(node_id))


def upstream(graph: Graph, node: str) -> dict[str, bool]:
    """Nodes that a node depends on, by id: True where item i of a list there leads to item i here, on every
    path between them."""
    found: dict[str, bool] = {}
    waiting = [(node, True)]
    while waiting:
        at, ordered = waiting.pop()
        if not graph.has_node(at):
            continue
        made = graph.get_node(at)
        ordered = ordered and not _flag(made, "INPUT_IS_LIST")
        for value in made.get("inputs", {}).values():
            if not is_link(value):
                continue
            source, output = str(value[0]), value[1]
            item_by_item = ordered and not (
                graph.has_node(source) and _is_list(graph.get_node(source), output)
            )
            known = found.get(source)
            if known is None or (known and not item_by_item):
                found[source] = item_by_item
                waiting.append((source, item_by_item))
    return found


def _flag(made: dict, name: str):
    # ComfyUI's module, which the type checker takes for this package.
    from nodes import NODE_CLASS_MAPPINGS  # pyright: ignore[reportAttributeAccessIssue]

    return getattr(NODE_CLASS_MAPPINGS.get(made.get("class_type")), name, None)


def _is_list(made: dict, output: int) -> bool:
    """Whether an output of a node is a list of items by itself."""
    flags = _flag(made, "OUTPUT_IS_LIST")
    return bool(flags and output < len(flags) and flags[output])
