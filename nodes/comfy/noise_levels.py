"""The noise level of an evaluation as a number, without a wait for the device.

Reading it from the device makes the host wait for all that the device was asked to do before. Samplers that
evaluate the model once per step, at the levels of the schedule, are given the schedule's own numbers; that
they are right is checked one evaluation later, by a copy that nobody waits for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

ON_SCHEDULE = frozenset(
    (
        "ddpm deis dpmpp_2m dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu er_sde euler "
        "euler_ancestral euler_ancestral_cfg_pp euler_cfg_pp gradient_estimation ipndm ipndm_v lcm lms "
        "res_multistep res_multistep_ancestral"
    ).split()
)
"""ComfyUI's samplers that evaluate the model at the levels of the schedule, once each and in order."""


class NoiseLevels:
    """The levels of one run.

    levels: of the schedule, one more than steps.
    sampler: name of the sampler's function.
    """

    def __init__(self, levels: Sequence[float], sampler: str):
        self._levels = list(levels)[:-1]
        self.trusted = sampler.removeprefix("sample_") in ON_SCHEDULE
        """Whether the evaluations so far were at the levels of the schedule, as far as is known."""
        self._at = 0
        self._room: torch.Tensor | None = None
        self._copied: tuple[int, torch.cuda.Event | None] | None = None

    def of(self, timestep: torch.Tensor, on_device: bool | None = None) -> float:
        """The level of the next evaluation; timestep: what the sampler gives the model.

        on_device: whether reading it would wait, None to see by its device."""
        self._check()
        if not (timestep.device.type == "cuda" if on_device is None else on_device):
            return float(timestep.flatten()[0])
        if not self.trusted or self._at >= len(self._levels):
            return float(timestep.flatten()[0])
        at, self._at = self._at, self._at + 1
        self._copy(at, timestep)
        return self._levels[at]

    def _copy(self, at: int, timestep: torch.Tensor) -> None:
        """Copies a level to main memory without waiting."""
        cuda = timestep.device.type == "cuda"
        if self._room is None:
            self._room = torch.empty(len(self._levels), pin_memory=cuda)
        self._room[at : at + 1].copy_(timestep.flatten()[:1], non_blocking=cuda)
        event = None
        if cuda:
            event = torch.cuda.Event()
            event.record()
        self._copied = (at, event)

    def _check(self) -> None:
        """Compares the last copied level with the schedule's, if the copy is there."""
        if self._copied is None or self._room is None:
            return
        at, event = self._copied
        if event is None or event.query():
            self._copied = None
            self.trusted = math.isclose(float(self._room[at]), self._levels[at], rel_tol=1e-5, abs_tol=1e-8)
