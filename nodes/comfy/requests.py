"""What our nodes leave in a model's options, and what a run leaves there while it lasts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...cache_core.base.handles import Handle
from ...cache_core.config import CacheConfig
from ...cache_core.controller import Controller
from ...cache_core.models.families import find_family
from ...cache_core.selectors.token_selection import Selector
from .branch_keys import Windows
from .noise_levels import NoiseLevels
from .profile_files import Recording
from .report_box import ReportBox

KEY = "dual_cache"
TOKENS = "dual_cache_tokens"
RUN = "dual_cache_run"
"""Keys of the requests and of the run in transformer_options; our wrappers are registered under KEY."""


@dataclass(frozen=True)
class CacheRequest(Handle):
    """What the Dual Cache node leaves in a model.

    settings: what to do.
    node_id: the node that shows the run.
    box: where the reports go.
    memory: GB that caches may take, 0 for a share of what is free.
    notes: sentences for the report.
    """

    settings: CacheConfig
    node_id: str | None = None
    box: ReportBox = field(default_factory=ReportBox)
    memory: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProfileRequest(Handle):
    """What the Profile Model node leaves in a model: what to record; the others are as of `CacheRequest`."""

    recording: Recording
    node_id: str | None = None
    box: ReportBox = field(default_factory=ReportBox)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenRequest(Handle):
    """What the V-Cache Attention Patch leaves in a model: how conservative steps choose their tokens."""

    selector: Selector
    ratio: float | None
    text_ratio: float | None
    attention: str
    seed: int
    notes: tuple[str, ...] = ()


class Run(Handle):
    """A running controller in transformer_options.

    sent: how many records the browser has.
    levels: the noise levels of its evaluations.
    windows: the context windows of its evaluations.
    boxes: where its report goes; that of a guider's second model may be among them.
    """

    def __init__(
        self,
        controller: Controller,
        request: CacheRequest | ProfileRequest,
        levels: NoiseLevels | None = None,
    ):
        self.controller, self.request, self.sent = controller, request, 0
        self.levels = levels or NoiseLevels((), "")
        self.windows, self.boxes = Windows(), [request.box]


def request_of(model) -> CacheRequest | ProfileRequest | None:
    """The request of Dual Cache or Profile Model that a MODEL carries, or None."""
    return model.model_options.get("transformer_options", {}).get(KEY)


def settings_for(options: dict, model) -> CacheConfig:
    """The settings of a request for a diffusion model: those of its family, with the token choice of V-Cache
    Attention Patch.

    options: transformer_options."""
    family, tokens = find_family(model), options.get(TOKENS)
    settings = options[KEY].settings.for_family(family.name if family else "")
    if tokens is None:
        return settings
    return replace(
        settings,
        selector=tokens.selector,
        ratio=tokens.ratio,
        text_ratio=tokens.text_ratio,
        attention=tokens.attention,
        seed=tokens.seed,
    )
