"""What other threads say to the engine's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from predictor.errors import ServingError
from predictor.job import Job


@dataclass(frozen=True)
class Submit:
    job: Job


@dataclass(frozen=True)
class Cancel:
    job: Job


@dataclass(frozen=True)
class Replace:
    """The denoiser, by one that computes the same faster."""

    denoiser: torch.nn.Module


@dataclass(frozen=True)
class Stop:
    """Fails what is unfinished with `reason`."""

    reason: ServingError


Message = Submit | Cancel | Replace | Stop
