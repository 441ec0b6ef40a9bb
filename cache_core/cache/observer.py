"""The interface of observers: they see every feature of full steps and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from ..base.coordinates import Node

if TYPE_CHECKING:
    from .feature_cache import Branch


class Observer(Protocol):
    """What the controller tells an observer of one run."""

    @property
    def modules(self) -> bool:
        """Whether module outputs are to be observed too."""
        raise NotImplementedError

    def observe(self, branch: Branch, name: tuple, truth: torch.Tensor, node: Node) -> None:
        """A site's value `truth` [b,...] on a full step; name: of the site, as in `Branch.sites`."""

    def abandon(self, why: str) -> None:
        """Memory ran out: everything recorded is to be freed, and `why` told to whoever asks for it."""
