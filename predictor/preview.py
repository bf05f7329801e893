"""A small picture of what a request is working on, cheap enough to make between two steps.

Where decoding takes no longer than a forward of the denoiser, the autoencoder itself decodes. Elsewhere one matrix from a
latent's channels to red, green and blue gives a pixel for each latent: autoencoders of full size are nearly linear in colour.
Both are fitted to the pictures made at warm-up, so that no model family need be known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

_RIDGE = 1e-3  # keeps channels that the warm-up pictures hardly used from being amplified
_MOST_RESIDUE = 0.05  # of what the decoder got; some samplers leave a trace of noise in it

# Of latents as the sampler has them, and width / height: [pictures, 3, height, width] from 0 to 1.
Preview = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Sample:
    """A picture of the warm-up: the latents that the sampler ended with, those that the decoder got, and what came of them."""

    latents: Tensor  # [1, …]
    decoded: Tensor  # [1, channels, height, width] or with one frame after the channels
    image: Tensor  # [1, 3, height, width] from 0 to 1


@dataclass(frozen=True)
class Linear:
    weight: Tensor  # [channels + 1, 3], the last row is added

    def __call__(self, latents: Tensor, aspect: float) -> Tensor:
        grid = _grid(latents, aspect).to(self.weight.dtype)
        colours = torch.einsum("nchw,cd->ndhw", grid, self.weight[:-1]) + self.weight[-1, :, None, None]
        return colours.clamp(0, 1)


@dataclass(frozen=True)
class Decoded:
    decode: Callable[..., Any]
    scale: Tensor  # [1, channels, 1, 1]
    shift: Tensor

    def __call__(self, latents: Tensor, aspect: float) -> Tensor:
        wanted = (latents * self.scale + self.shift).to(self.scale.dtype)
        image: Tensor = self.decode(wanted, return_dict=False)[0]
        return (image / 2 + 0.5).clamp(0, 1)


def linear(samples: list[Sample]) -> Linear | None:
    """None where latents lie in no known order."""
    try:
        grids = [_grid(each.latents, each.image.shape[3] / each.image.shape[2]).float() for each in samples]
    except ValueError:
        return None
    colours = [
        adaptive_avg_pool2d(each.image, (grid.shape[2], grid.shape[3])) for each, grid in zip(samples, grids, strict=True)
    ]
    known, wanted = _points(grids), _points(colours)
    mean = known.mean(0)
    centred = known - mean
    ridge = _RIDGE * len(known) * torch.eye(known.shape[1], device=known.device)
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (wanted - wanted.mean(0)))
    return Linear(torch.cat([weight, (wanted.mean(0) - mean @ weight)[None]]))


def decoded(decode: Callable[..., Any], samples: list[Sample]) -> Decoded | None:
    """None where the decoder gets something else than the sampler's latents scaled and shifted, channel by channel."""
    if any(each.latents.shape != each.decoded.shape or each.latents.ndim != 4 for each in samples):
        return None
    before, after = (
        torch.cat(tensors).float() for tensors in zip(*((each.latents, each.decoded) for each in samples), strict=True)
    )
    axes = (0, 2, 3)
    mean = before.mean(axes, keepdim=True)
    goal = after.mean(axes, keepdim=True)
    variance = ((before - mean) ** 2).mean(axes, keepdim=True).clamp_min(1e-12)
    scale = ((before - mean) * (after - goal)).mean(axes, keepdim=True) / variance
    shift = goal - mean * scale
    if (before * scale + shift - after).norm() > _MOST_RESIDUE * after.norm():
        return None
    dtype = samples[0].decoded.dtype
    return Decoded(decode, scale.to(dtype), shift.to(dtype))


def _grid(latents: Tensor, aspect: float) -> Tensor:
    """As [pictures, channels, height, width]. Raises ValueError for anything but planes, one frame of a film, or tokens row by
    row, [pictures, tokens, channels]."""
    if latents.ndim == 5 and latents.shape[2] == 1:
        return latents.squeeze(2)
    if latents.ndim == 3:
        tokens = latents.shape[1]
        height = round((tokens / aspect) ** 0.5)
        if height and tokens % height == 0:
            return latents.transpose(1, 2).reshape(len(latents), -1, height, tokens // height)
    if latents.ndim != 4:
        raise ValueError(f"latents of shape {tuple(latents.shape)}")
    return latents


def _points(planes: list[Tensor]) -> Tensor:
    """[points, channels], of planes [pictures, channels, height, width]."""
    return torch.cat([plane.permute(0, 2, 3, 1).flatten(0, 2) for plane in planes])
