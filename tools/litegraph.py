"""Builds ComfyUI workflow files (litegraph JSON, version 0.4) from a short description and a ComfyUI's node
definitions.

A description names nodes and their values; sockets, the order of widgets, links, places and groups follow
from the definitions, in the form of ComfyUI's /object_info. Those of the oldest supported ComfyUI serve best:
newer ones fill in the inputs they have added."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
"""A choice of newer ComfyUI versions that brings inputs of its own."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
NOTE = "MarkdownNote"
SEEDS, SEED_CONTROL, UPLOAD = ("seed", "noise_seed"), "control_after_generate", "upload"
SPACE = uuid.UUID("6f1f9c1e-8d1c-5b5e-9d2b-1c2f7d5a4e31")
TITLE, SOCKET_ROW, WIDGET_ROW, TEXT_BOX, GAP, MARGIN = (
    30,
    24,
    32,
    120,
    22,
    24,
)  # those of Nodes 2.0, which needs more room
BLUE = "#3f789e"
INPUT_END, OUTPUT_END = -10, -20
"""litegraph's node ids of a subgraph's two ends."""


class Slot(NamedTuple):
    """An output to link from: of a node, or of a subgraph's input end."""

    node: int
    index: int
    type: str


class Widget(NamedTuple):
    """Where a subgraph's input ends at a widget: node id and the widget's name."""

    node: int
    name: str


def uid(name: str) -> str:
    """A UUID that is the same at every run."""
    return str(uuid.uuid5(SPACE, name))


def inputs_of(definition: dict) -> dict[str, tuple[str, dict]]:
    """Name to (type, options) of every input, in the front end's order: required ones, then optional ones."""
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in definition["input"].get(group, {}).items():
            options = {"optional": group == "optional"}
            if isinstance(kind, list):
                kind, options["options"] = "COMBO", kind
            found[name] = kind, {**options, **(rest[0] if rest and isinstance(rest[0], dict) else {})}
    return found


def is_widget(kind: str, options: dict) -> bool:
    """Whether the front end shows an input as a widget rather than as a bare socket."""
    return kind in WIDGETS and not options.get("forceInput")


def default_of(kind: str, options: dict):
    """The value of a widget that nobody has set."""
    if kind == DYNAMIC:
        return next((o["key"] for o in options.get("options") or []), "")
    if kind == "COMBO":
        return options.get("default", (options.get("options") or [""])[0])
    return options.get("default", {"STRING": "", "BOOLEAN": False}.get(kind, 0))


def widget_slots(definition: dict) -> list[tuple[str, tuple[str, dict] | None]]:
    """What the entries of a node's widgets_values are, in order: (input, its type and options), or (name,
    None) for those that the front end adds after a seed and an upload."""
    slots = []
    for name, (kind, options) in inputs_of(definition).items():
        if is_widget(kind, options):
            slots.append((name, (kind, options)))
            if options.get(SEED_CONTROL, kind == "INT" and name in SEEDS):
                slots.append((SEED_CONTROL, None))
            if options.get("image_upload"):
                slots.append((UPLOAD, None))
    return slots


@dataclass
class Graph:
    """Nodes in columns, one group per column.

    definitions: by node id. packs: start of a Python module's name to (registry id, version), written into
        the nodes' properties."""

    definitions: dict[str, dict]
    packs: dict[str, tuple[str, str]]
    nodes: list[dict] = field(default_factory=list)
    links: list[dict] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)
    entries: list[tuple[str, str, Widget | None]] = field(default_factory=list)
    _x: float = 0
    _y: float = 0
    _width: float = 0

    @property
    def right(self) -> float:
        """Where the next column begins."""
        return self._x + self._width + 2 * MARGIN + 16 if self.groups else 0

    def column(self, title: str, width: int = 320) -> None:
        """Starts the next column."""
        self._x, self._y, self._width = self.right, 0, width
        bounding = [self._x - MARGIN, -2 * TITLE - GAP, width + 2 * MARGIN, 0]
        self.groups.append(
            {
                "id": len(self.groups) + 1,
                "title": title,
                "bounding": bounding,
                "color": BLUE,
                "font_size": 22,
                "flags": {},
            }
        )

    def entry(self, name: str, kind: str) -> Slot:
        """Adds an input of the subgraph that this graph becomes, to link from."""
        self.entries.append((name, kind, None))
        return Slot(INPUT_END, len(self.entries) - 1, kind)

    def note(self, text: str, height: int) -> None:
        """Adds a Markdown note; the lines of a paragraph are joined."""
        text = re.sub(r"(?<=\S)\n(?=[\w*(])", " ", text.strip())
        self._place(
            {
                "type": NOTE,
                "inputs": [],
                "outputs": [],
                "properties": {},
                "widgets_values": [text],
                "color": "#432",
                "bgcolor": "#000",
            },
            height,
        )

    def node(
        self,
        kind: str,
        /,
        *,
        title: str = "",
        tall: int = 0,
        models=(),
        control: str = "fixed",
        **values: Any,
    ) -> dict[str, Slot]:
        """Adds a node and returns its outputs by name.

        values: by input name, a `Slot` to link from or a widget's value; widgets left out take their default,
            and stay out of the file where they are optional ones of ComfyUI's nodes.
        tall: least height.
        models: (name, url, folder) of files to download.
        control: what a seed does after a run.
        Raises ValueError for an input the node does not have, a link of another type, and a node of a foreign
        pack."""
        definition, number = self.definitions[kind], len(self.nodes) + 1
        inputs = inputs_of(definition)
        for name, value in values.items():
            if name not in inputs:
                raise ValueError(f"{kind} has no input {name}.")
            if isinstance(value, Slot) and value.type != inputs[name][0]:
                raise ValueError(f"{name} of {kind} takes {inputs[name][0]}, not {value.type}.")
        widgets = {name: spec for name, spec in inputs.items() if is_widget(*spec)}
        sockets = [name for name in inputs if name not in widgets]
        any_linked = any(isinstance(values.get(name), Slot) for name in widgets)
        rows = (
            [*sockets, *widgets] if any_linked else sockets
        )  # the front end's order, which counts for links
        pack = self._pack_of(kind, definition["python_module"])
        # Newer versions of ComfyUI give their own output nodes outputs, which older ones lack.
        core = pack.get("cnr_id") == "comfy-core"
        ends = definition["output_node"] and core
        outputs = [] if ends else list(zip(definition["output_name"], definition["output"]))
        data = {
            "type": kind,
            "inputs": [
                self._input(number, i, name, inputs[name], values.get(name)) for i, name in enumerate(rows)
            ],
            "outputs": [
                {"name": name, "type": t, "slot_index": i, "links": []} for i, (name, t) in enumerate(outputs)
            ],
            "properties": {"Node name for S&R": kind, **pack},
            "widgets_values": _widget_values(definition, values, control, not core),
        }
        if models:
            data["properties"]["models"] = [
                dict(zip(("name", "url", "directory"), model)) for model in models
            ]
        if title:
            data["title"] = title
        texts = sum(bool(options.get("multiline")) for _, options in widgets.values())
        lines = len(data["widgets_values"]) - texts
        self._place(
            data,
            max(
                tall,
                SOCKET_ROW * max(len(sockets), len(outputs)) + WIDGET_ROW * lines + TEXT_BOX * texts + 24,
            ),
        )
        return {name: Slot(number, i, t) for i, (name, t) in enumerate(outputs)}

    def _pack_of(self, kind: str, module: str) -> dict:
        for prefix, (name, version) in self.packs.items():
            if module.startswith(prefix):
                return {"cnr_id": name, "ver": version}
        raise ValueError(f"{kind} comes from {module}; only core nodes and those of this pack may be used.")

    def _input(self, node: int, index: int, name: str, spec: tuple[str, dict], value) -> dict:
        kind, options = spec
        row = {"name": name, "type": kind, "link": None}
        if options["optional"]:
            row["shape"] = 7
        if is_widget(kind, options):
            row["widget"] = {"name": name}
        if isinstance(value, Slot):
            row["link"] = self._link(value, node, index)
            if value.node == INPUT_END and "widget" in row:
                self.entries[value.index] = (*self.entries[value.index][:2], Widget(node, name))
        return row

    def _link(self, source: Slot, node: int, index: int) -> int:
        number = len(self.links) + 1
        self.links.append(
            {
                "id": number,
                "origin_id": source.node,
                "origin_slot": source.index,
                "target_id": node,
                "target_slot": index,
                "type": source.type,
            }
        )
        if source.node != INPUT_END:
            self.nodes[source.node - 1]["outputs"][source.index]["links"].append(number)
        return number

    def _place(self, data: dict, height: float) -> None:
        order = len(self.nodes)
        self.nodes.append(
            {
                "id": order + 1,
                "pos": [self._x, self._y],
                "size": [self._width, height],
                "flags": {},
                "order": order,
                "mode": 0,
                **data,
            }
        )
        group = self.groups[-1]["bounding"]
        group[3] = self._y + height + MARGIN - group[1]
        self._y += height + TITLE + GAP

    def workflow(self, name: str) -> dict:
        """The content of a workflow file."""
        return {
            "id": uid(name),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": [list(link.values()) for link in self.links],
            "groups": self.groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def blueprint(
        self, name: str, description: str, aliases: list[str], category: str, results: dict[str, Slot]
    ) -> dict:
        """The content of a subgraph blueprint: one node that holds this graph, its inputs the `entries`, its
        outputs `results`."""
        for i, slot in enumerate(results.values()):
            self._link(slot, OUTPUT_END, i)
        ends = [
            (
                name,
                kind,
                [x["id"] for x in self.links if (x["origin_id"], x["origin_slot"]) == (INPUT_END, i)],
            )
            for i, (name, kind, _) in enumerate(self.entries)
        ]
        outs = [
            (
                n,
                slot.type,
                [x["id"] for x in self.links if (x["target_id"], x["target_slot"]) == (OUTPUT_END, i)],
            )
            for i, (n, slot) in enumerate(results.items())
        ]
        left, right, number = -260, self.right, len(self.nodes) + 1
        shown = [widget for _, _, widget in self.entries if widget]
        shown += [Widget(widget.node, SEED_CONTROL) for widget in shown if widget.name in SEEDS]
        inner = {
            "id": uid(name),
            "version": 1,
            "revision": 0,
            "config": {},
            "name": name,
            "category": category,
            "description": description,
            "state": {
                "lastGroupId": len(self.groups),
                "lastNodeId": number,
                "lastLinkId": len(self.links),
                "lastRerouteId": 0,
            },
            "inputNode": {"id": INPUT_END, "bounding": [left, 0, 160, 40 + SOCKET_ROW * len(ends)]},
            "outputNode": {"id": OUTPUT_END, "bounding": [right, 0, 120, 40 + SOCKET_ROW * len(outs)]},
            "inputs": _ends(name, "in", ends, left + 140),
            "outputs": _ends(name, "out", outs, right + 20),
            "widgets": [],
            "nodes": self.nodes,
            "groups": self.groups,
            "links": self.links,
            "extra": {},
        }
        inputs = [
            {"name": n, "type": kind, "link": None} | ({"widget": {"name": n}} if widget else {})
            for n, kind, widget in self.entries
        ]
        outer = {
            "id": number,
            "type": uid(name),
            "pos": [0, 0],
            "size": [400, 420],
            "flags": {},
            "order": 0,
            "mode": 0,
            "title": name,
            "inputs": inputs,
            "outputs": [{"name": n, "type": slot.type, "links": []} for n, slot in results.items()],
            "properties": {"proxyWidgets": [[str(w.node), w.name] for w in shown]},
            "widgets_values": [],
        }
        return {
            "id": uid(f"{name} blueprint"),
            "revision": 0,
            "last_node_id": number,
            "last_link_id": 0,
            "nodes": [outer],
            "links": [],
            "groups": [],
            "definitions": {"subgraphs": [inner]},
            "config": {},
            "extra": {"BlueprintDescription": description, "BlueprintSearchAliases": aliases},
            "version": 0.4,
        }


def _ends(graph: str, side: str, rows: list[tuple[str, str, list[int]]], x: float) -> list[dict]:
    return [
        {
            "id": uid(f"{graph} {side} {name}"),
            "name": name,
            "type": kind,
            "linkIds": links,
            "pos": [x, SOCKET_ROW * (i + 1)],
        }
        for i, (name, kind, links) in enumerate(rows)
    ]


def _widget_values(definition: dict, values: dict, control: str, own: bool) -> list:
    """own: whether the node is of this pack; versions of ComfyUI differ in the optional inputs of theirs."""
    found = []
    for name, spec in widget_slots(definition):
        value = values.get(name)
        if spec is None:
            found.append({SEED_CONTROL: control, UPLOAD: "image"}[name])
        elif value is not None and not isinstance(value, Slot):
            found.append(value)
        elif own or not spec[1]["optional"]:
            found.append(default_of(*spec))
    return found
