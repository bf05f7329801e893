"""What the engine made becomes what callers get: pictures off the device, into files, with what it takes to make them again.

Encoding runs in threads of its own: it waits for the copy from the device, and lets the interpreter go while it works.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from predictor import images
from predictor.images import EncodedImage
from predictor.job import Progress, Result
from predictor.pixels import Pixels
from predictor.request import Answer, Params, Step
from predictor.snapshot import Snapshot

if TYPE_CHECKING:
    from predictor.credentials import Signer

# Of picture i, a PNG: keyword and text of a chunk that a protocol wants in it, beside our own.
Inscription = Callable[[Params, int, EncodedImage], tuple[str, str]]


@dataclass(frozen=True)
class Previews:
    """Wanted on the way: how many, in which format (None: the picture's), and whether scaled to its size."""

    count: int
    output_format: str | None = None
    full_size: bool = False

    def due(self, step: int, of: int) -> bool:
        """The first comes before half of the steps are done, the last well before all are."""
        return step in {max(int(of * (i + 1) / (self.count + 1.5)), 1) for i in range(self.count)}


@dataclass(frozen=True)
class Answers:
    snapshot: Snapshot
    embed_prompt: bool
    signer: Signer | None = None
    inscription: Inscription | None = None

    async def answer(self, params: Params, result: Result, tokens: tuple[int, int]) -> Answer:
        """`tokens`: of the prompt, and those that no encoder reads."""
        begin = time.monotonic()
        each = range(params.num_images_per_prompt)
        pictures = await asyncio.gather(*(asyncio.to_thread(self._encode, params, result.output.images, i) for i in each))
        flagged: Iterable[bool] | None = getattr(result.output, "nsfw_content_detected", None)
        seconds = {**result.seconds, "encode": time.monotonic() - begin}
        return Answer(params, tuple(pictures), seconds, *tokens, tuple(map(bool, flagged)) if flagged is not None else None)

    async def step(self, state: str, params: Params, progress: Progress, previews: Previews) -> Step:
        preview = None
        if progress.preview:
            size = (params.width, params.height) if previews.full_size and params.width and params.height else None
            preview = await self.preview(progress.preview, previews.output_format or params.output_format, size)
        return Step(state, progress.step, progress.of, preview)

    async def preview(self, pixels: Pixels, output_format: str, size: tuple[int, int] | None = None) -> EncodedImage:
        """Of the first picture; scaled to `size`, width and height."""
        return await asyncio.to_thread(lambda: images.preview(pixels[0], output_format, size))

    def _encode(self, params: Params, pixels: Pixels, i: int) -> EncodedImage:
        picture = pixels[i]
        made = self._provenance(params, params.seeds[i], picture.shape)
        image = images.encode(picture, params.output_format, made, params.output_compression)
        if self.inscription:
            image = replace(image, data=images.with_text(image.data, *self.inscription(params, i, image)))
        # The signature comes last: it is over everything in the file.
        return self.signer.sign(image, self.snapshot.repo, self.snapshot.commit) if self.signer else image

    def _provenance(self, params: Params, seed: int, shape: Sequence[int]) -> Mapping[str, object]:
        """What to send to get the image again, alone. `shape`: [height, width, …]."""
        kept = {name: value for name, value in vars(params).items() if value is not None}
        if not self.embed_prompt:
            kept = images.without_prompts(kept)
        asked = kept | {"seed": seed, "width": shape[1], "height": shape[0], "num_images_per_prompt": 1}
        made = self.snapshot
        return {"model": made.repo, "commit": made.commit, "pipeline": made.pipeline} | asked
