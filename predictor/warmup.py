"""First pictures, before anybody asks: they load kernels, prove that the model works, and tell whether requests may share.

Sharing a forward is safe for a denoiser that treats rows alike and alone. Most do; one that looks at its rows' order or
number (perturbed attention, say) would paint wrong pictures without a word. So two different requests are made alone and
together, and unless they agree, requests take turns.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from predictor import telemetry
from predictor.engine import Engine
from predictor.errors import ModelNotLoadable, ServingError
from predictor.model import TextToImage
from predictor.request import Params

# Out of 255. Two steps of float32 differ by at most 1, of half precision by a few where a pixel is undecided; pictures
# that got each other's rows differ by tens nearly everywhere.
_MOST_MEAN_DIFFERENCE = 2.0


def warm_up(model: TextToImage, max_rows: int) -> bool:
    """Whether requests may share forwards. Raises ModelNotLoadable when there is no picture at all."""
    requests = [_params(model, "a picture", 1), _params(model, "something else entirely", 2)]
    alone = [_pictures(model, [each], max_rows)[0] for each in requests]
    try:
        together = _pictures(model, requests, max_rows)
    except ModelNotLoadable:
        together = []
    differences = [float(np.abs(a - b).mean()) for a, b in zip(alone, together, strict=False) if a.shape == b.shape]
    shares = len(differences) == len(requests) and max(differences) <= _MOST_MEAN_DIFFERENCE
    if not shares:
        telemetry.event("requests take turns: two made together differ from the same made alone", mean_differences=differences)
    return shares


def _params(model: TextToImage, prompt: str, seed: int) -> Params:
    """Few steps, yet two where the sampler can: the second is the first that finds a sampler with a history."""
    limits = model.limits
    return Params(
        prompt=prompt,
        width=limits.width,
        height=limits.height,
        num_inference_steps=next((few for few in (2, 4) if model.takes_steps(None, few)), 2),
        guidance_scale=limits.guidance_scale,
        seed=seed,
    )


@torch.no_grad()
def _pictures(model: TextToImage, requests: list[Params], max_rows: int) -> list[np.ndarray]:
    """Made in this thread, by an engine of their own."""
    engine = Engine(model, max_rows=max_rows, max_queue=len(requests))
    jobs = engine.submit(requests, timeout=math.inf, request_id="warm-up")
    while engine.open_jobs:
        engine.step()
    name = model.snapshot.pipeline
    try:
        outputs = [job.future.result().output for job in jobs]
        return [np.asarray(output.images[0], dtype=float) for output in outputs]
    except ServingError as error:
        raise ModelNotLoadable(f"{name} loaded but failed on a warm-up picture; the log line before this says where") from error
    except (AttributeError, IndexError, TypeError) as error:
        raise ModelNotLoadable(f"{name} returned no images: it is no text-to-image pipeline") from error
