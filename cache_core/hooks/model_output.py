"""The whole model in one call: its output is kept or put back, and its input is compared with that of the
last full step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..base.errors import CacheMismatch
from ..base.names import FINAL, OUTPUT, STACK, STREAMS
from ..cache.feature_predictor import FeaturePredictor
from ..config import CacheConfig
from ..predictors.extrapolation import predictor
from .call_context import Call

_REUSE = predictor("reuse")


def _sizes(*values) -> tuple:
    """What must be equal between two calls of a whole model: the sizes of all tensors it is given, also in
    lists."""
    return tuple(
        (tuple(v.shape[1:]), v.dtype) if isinstance(v, torch.Tensor) else _sizes(*v)
        for v in values
        if isinstance(v, (torch.Tensor, list, tuple))
    )


def input_of_output(x, out) -> torch.Tensor | None:
    """The channels of a model's input [B,C,...] that its output [B,C',...] predicts, the first C'; channels
    that a host appends for conditioning come behind them. None where the shapes do not match."""
    if (
        not isinstance(x, torch.Tensor)
        or not isinstance(out, torch.Tensor)
        or x.ndim != out.ndim
        or x.ndim < 3
    ):
        return None
    return x[:, : out.shape[1]] if x.shape[2:] == out.shape[2:] and x.shape[1] >= out.shape[1] else None


def rule_of(config: CacheConfig, name: tuple) -> FeaturePredictor:
    """What puts back a site of a whole model: the predictor of the level, or the last value where the config
    holds the site's stream back. name: of the site; behind its first two parts stands the stream or its place
    in the output, nothing for the first."""
    stream = name[2] if len(name) > 2 else 0
    stream = STREAMS[stream] if isinstance(stream, int) and stream < len(STREAMS) else stream
    return _REUSE if name[:2] in (FINAL, OUTPUT, STACK) and stream in config.streams else config.predictor


@dataclass
class ModelOutput:
    """The shims on the whole model, and how features are kept and signed.

    call: the running call."""

    call: Call

    def __post_init__(self):
        settings = self.call.settings
        self.level, self.predictor = settings.level, settings.predictor
        self._latent = self.level == "output" and self.predictor.probe == "latent"
        self._ended = False
        for branch in self.call.batch.branches:
            branch.evidence.now = None

    def _skip_model(self, original):
        def forward(x, *args, **kwargs):
            if self.call.arrived:
                self._repeated()
            self.call.arrived = True
            self._check_input(x, _sizes(x, *args, *kwargs.values()))
            if self._latent:
                self._observe(input_of_output(x, self.call.batch.branches[0].sites[OUTPUT].snapshots[0]))
            names = [
                OUTPUT,
                *(n for n in self.call.batch.branches[0].sites if n[:2] == OUTPUT and n != OUTPUT),
            ]
            out = [self.call.batch.value(n, rule_of(self.call.settings, n), owned=True) for n in names]
            return out if len(out) > 1 else out[0]

        return forward

    def _watch_model(self, original):
        def forward(x, *args, **kwargs):
            mark = _sizes(x, *args, *kwargs.values())
            if self.call.arrived:
                self._repeated()
            self.call.arrived = True
            if self.call.kind == "C":
                self._check_input(x, mark)
            # The model may write into its input.
            latent = x.clone() if self._latent and isinstance(x, torch.Tensor) else None
            out = original(x, *args, **kwargs)
            given = input_of_output(latent, out)
            # A view of a part would keep the whole tensor alive.
            same = given is None or latent is None or given.shape == latent.shape
            self._observe(given if given is None or same else given.clone())
            parts = out if isinstance(out, (list, tuple)) else (out,)
            if isinstance(out, torch.Tensor) or (
                len(parts) > 1 and all(isinstance(o, torch.Tensor) for o in parts)
            ):
                self._keep_output(parts, mark)  # other outputs cannot be put back
            return out

        return forward

    def _keep_output(self, parts, mark: tuple) -> None:
        """Keeps a model's output; models of video and sound have one of each."""
        call, first = self.call, parts[0]
        if call.kind == "F":
            call.batch_size = first.shape[0]
            values = sum(o.numel() for o in parts) // first.shape[0]
            call.sizes_known(OUTPUT, {"": (values, 1)}, first.element_size())
        for i, o in enumerate(parts[1:], 1):
            self._note((*OUTPUT, i), o.clone())
        self._note(OUTPUT, first.clone())
        self._sign(mark, first.shape[0])

    def _require_last_block(self, original):
        def forward(*args, **kwargs):
            out = original(*args, **kwargs)
            if not self._ended:
                raise CacheMismatch(
                    "The last block did not run, so nothing was put back; this call runs in full."
                )
            return out

        return forward

    def _observe(self, probe: torch.Tensor | None) -> None:
        if probe is not None:
            self.call.batch.observe(probe)

    def _repeated(self) -> None:
        """The blocks, or the model, come up a second time within this call."""
        self.call.repeated = True
        if self.call.kind != "F":
            raise CacheMismatch(
                "The model's blocks ran a second time within one model call; this call runs in full."
            )

    def _check_input(self, x, mark: tuple) -> None:
        x = x if isinstance(x, torch.Tensor) else x[0]
        if not self._signed(mark, x.shape[0]):
            raise CacheMismatch(
                "The model's input does not have the size of the last full step; this call runs in full."
            )

    def _signed(self, mark: tuple, samples: int) -> bool:
        """Whether a call with this mark and batch size matches the last full step."""
        branches = self.call.batch.branches
        return all(b.signature == mark for b in branches) and samples == sum(b.size for b in branches)

    def _sign(self, mark: tuple, samples: int) -> None:
        """On a full step: notes what later calls must match, after everything of it has been kept."""
        branches = self.call.batch.branches if self.call.kind == "F" else ()
        for branch in branches:
            branch.signature, branch.size = mark, samples // len(branches)

    def _note(self, name, truth: torch.Tensor) -> None:
        """Keeps a site's computed value: as a snapshot on a full step, as a correction on a conservative
        one."""
        call = self.call
        if call.kind == "C":
            call.batch.correct(name, truth, self.predictor)
            return
        call.note(name, truth)
        call.batch.record(name, truth, self.predictor)
        for branch in call.batch.branches:
            if branch.evidence.now is not None and name in (FINAL, STACK, OUTPUT):
                branch.evidence.past.push(branch.evidence.now, call.batch.node, self.predictor.needs)
