"""Snapshots that lie in main memory between two uses, and are on their way back before they are needed.

On CUDA both ways go through pinned memory on a stream of their own, beside the model's work. On the device
there are the snapshots of the site in use and of the one that came after it the last time, and those of as
many sites as the budget has room for, which never leave it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .feature_cache import Site


@dataclass
class _Near:
    """Snapshots on the device, what they were copied from, and what tells that they have arrived."""

    tensors: list[torch.Tensor]
    source: Sequence[torch.Tensor]
    arrived: torch.cuda.Event | torch.Event | None


class OffloadStore:
    """Where the sites of one run keep their snapshots.

    room: bytes on the device for sites that stay there, beside the two that are in use."""

    def __init__(self, room: float = 0):
        self.room = room
        self._staying: dict[Site, int] = {}
        """Sites that stay on the device, and the bytes that they may come to."""
        self._near: dict[Site, _Near] = {}
        self._after: dict[Site, Site] = {}
        self._last: Site | None = None
        self._first: Site | None = None
        self._device: torch.device | None = None
        self._stream: torch.cuda.Stream | None = None
        self._begun = False

    @property
    def near_bytes(self) -> int:
        """Bytes on the device now, of copies of snapshots that are kept in main memory."""
        return sum(t.numel() * t.element_size() for near in self._near.values() for t in near.tensors)

    def clear(self) -> None:
        """Lets go of everything."""
        self.__init__(self.room)

    def start(self) -> None:
        """A step that uses snapshots begins: those of its first site are sent for."""
        self._begun = True
        if self._first is not None:
            self._send_for(self._first)

    def _stays(self, site: Site, tensor: torch.Tensor, keep: int) -> bool:
        """Whether a site's snapshots stay on the device; decided at its first one."""
        if site not in self._staying and not site.kept:
            wanted = keep * tensor.numel() * tensor.element_size()
            if sum(self._staying.values()) + wanted <= self.room:
                self._staying[site] = wanted
        return site in self._staying

    def put(self, site: Site, tensor: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """A tensor of which the site keeps `keep`, where it is kept, to be handed to `near` later as it is: a
        copy in main memory, or itself."""
        if self._stays(site, tensor, keep):
            return tensor
        self._follow(site)
        self._near.pop(site, None)
        self._device = tensor.device
        if tensor.device.type != "cuda":
            return tensor.clone()
        self._stream = self._stream or torch.cuda.Stream(tensor.device)
        away = _pinned(tensor)
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            away.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)  # its memory must not be given to others before the copy is made
        return away

    def near(self, site: Site, source: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The site's snapshots on the device; those of the next site are sent for."""
        if not source or site in self._staying:
            return list(source)
        self._follow(site)
        here, following = self._send_for(site), self._after.get(site)
        self._near = {s: n for s, n in self._near.items() if s is site or s is following}
        if here.arrived is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(here.arrived)
            for tensor in here.tensors:
                tensor.record_stream(stream)
        if following is not None:
            self._send_for(following)
        return here.tensors

    def _follow(self, site: Site) -> None:
        if self._begun:
            self._first, self._begun = site, False
        self._first = self._first or site
        if self._last is not None and self._last is not site:
            self._after[self._last] = site
        self._last = site

    def _send_for(self, site: Site) -> _Near:
        source, found, stream = site.kept, self._near.get(site), self._stream
        if found is not None and found.source is source:
            return found
        cuda = stream is not None
        with torch.cuda.stream(stream) if cuda else nullcontext():
            tensors = [t.to(self._device, non_blocking=True) if cuda else t.clone() for t in source]
            arrived = None if stream is None else stream.record_event()
        found = self._near[site] = _Near(tensors, source, arrived)
        return found


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Room in main memory for a tensor, pinned where the system allows it."""
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
