"""Pictures on their way from the device to the host. The thread that launches work never waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Pixels:
    """A sequence of pictures, each uint8 [height, width, 3]. Begins its copy when made; looking at one waits for it."""

    def __init__(self, images: Any) -> None:
        """`images`: what diffusers' output_type="pt" gives, [pictures, 3, height, width] from 0 to 1; from a pipeline that
        knows only its own way, PIL images or arrays of [height, width, 3]."""
        self._arrived: torch.cuda.Event | None = None
        if not isinstance(images, Tensor):
            self._host = torch.from_numpy(np.stack([_array(image) for image in images]))
            return
        # Rounded as diffusers' numpy_to_pil does, in float32.
        # A fourth channel is transparency, which no format here is asked for.
        pixels = images.detach()[:, :3].permute(0, 2, 3, 1).float().mul(255).round().to(torch.uint8)
        if pixels.is_cuda:
            self._host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
            self._host.copy_(pixels, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        else:
            self._host = pixels.contiguous()

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: Any) -> np.ndarray:
        if self._arrived:
            self._arrived.synchronize()
        found: np.ndarray = self._host.numpy()[index]
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self[:])


def _array(image: Any) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    return pixels if pixels.dtype == np.uint8 else (pixels * 255).round().astype(np.uint8)
