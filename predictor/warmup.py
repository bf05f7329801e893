"""First pictures, before anybody asks: they load kernels, prove that the model works, and tell how requests may share.

Sharing a forward is safe for a denoiser that treats rows alike and alone. Most do; one that looks at its rows' order or
number (perturbed attention, say) would paint wrong pictures without a word. So two different requests are made alone and
together, and unless they agree, requests take turns. Then forwards of more and more rows are timed, up to where more no
longer pay: that many rows share a forward.

A witness looks on meanwhile, and learns how much of a prompt is read and what latents look like.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from predictor import telemetry
from predictor.device import Device
from predictor.engine import Engine
from predictor.errors import ModelNotLoadable, ServingError
from predictor.job import Watch
from predictor.model import TextToImage
from predictor.policy import Policy
from predictor.rendezvous import DENOISERS, Call, Rendezvous, resized
from predictor.request import Params
from predictor.speed import Curve
from predictor.witness import Witness

# Out of 255. Two steps of float32 differ by at most 1, of half precision by a few where a pixel is undecided; pictures
# that got each other's rows differ by tens nearly everywhere.
_MOST_MEAN_DIFFERENCE = 2.0
_MOST_ROWS = 64
_LONGEST_FORWARD = 2.0  # seconds; more rows than fit into that would make cancelling and joining slow
_LEAST_ROUNDS = 3  # in which a forward of so many rows is timed
_LEAST_SECONDS = 0.15


@dataclass(frozen=True)
class Findings:
    model: TextToImage  # which now knows how much its encoders read and what its latents look like
    curve: Curve
    row_limit: int  # rows of default size that share a forward; 0 where requests must take turns
    reason: str  # for that
    call: Call | None  # of the denoiser, as one request makes it

    @property
    def shares(self) -> bool:
        return self.row_limit > 0


def warm_up(model: TextToImage, max_rows: int | None = None) -> Findings:
    """`max_rows` overrides the measured limit. Raises ModelNotLoadable when there is no picture at all."""
    requests = [_params(model, "a picture", 1), _params(model, "something else entirely", 2)]
    witness, alone = Witness(model), []
    for request in requests:
        alone += _made(witness.model, [request]).pictures
        witness.saw(request.prompt, alone[-1])
    curve, call = _measured(model, requests[0], max_rows or _MOST_ROWS)
    model = witness.enlightened(forward_seconds=curve.seconds(1))
    reason = _why_turns(model, requests, alone)
    if reason:
        telemetry.event("requests take turns", reason=reason)
        return Findings(model, curve, 0, reason, call)
    return Findings(model, curve, max_rows or curve.knee, "set by the operator" if max_rows else "measured", call)


def _why_turns(model: TextToImage, requests: list[Params], alone: list[np.ndarray]) -> str:
    """Empty where requests may share."""
    if np.array_equal(alone[0], alone[1]):
        return "two different requests gave the same picture, which can tell nothing"
    if not hasattr(Rendezvous(model.pipe), "denoiser"):
        return f"the pipeline has no {' or '.join(DENOISERS)}"
    together = _made(model, requests)
    if not together.shared:  # prompts of different length, perhaps, which some pipelines do not fill up
        requests = [requests[0], dataclasses.replace(requests[0], seed=requests[1].seed)]
        alone = [picture for request in requests for picture in _made(model, [request]).pictures]
        together = _made(model, requests)
    if not together.shared:
        return "two requests for pictures of one size do not fit into one forward"
    difference = max(float(np.abs(a - b).mean()) for a, b in zip(alone, together.pictures, strict=True))
    if difference <= _MOST_MEAN_DIFFERENCE:
        return ""
    return f"two pictures made together differ from the same made alone, by {difference:.1f} of 255 on average"


@torch.no_grad()
def _measured(model: TextToImage, request: Params, most: int) -> tuple[Curve, Call | None]:
    """Seconds of a forward by rows, as far as more rows pay, and the call that was timed. Without a denoiser: seconds of a step
    of one request."""
    rendezvous, device = Rendezvous(model.pipe), Device(model.pipe.device, time.monotonic)
    begin = time.monotonic()
    guest = rendezvous.begin(lambda pipe: model.generate(pipe, request))
    guest.proceed()
    if not isinstance(guest.call, Call):
        return Curve({1: (time.monotonic() - begin) / request.num_inference_steps}), None
    call, measured = guest.call, dict[int, float]()
    for rows in (2**power for power in range(most.bit_length())):
        try:
            measured[rows] = _seconds(rendezvous, resized(call, rows), device)
        except torch.OutOfMemoryError:
            device.release_memory()
            break
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):  # it cannot bear any number of rows
            continue
        if measured[rows] > _LONGEST_FORWARD or Curve(measured).knee < rows // 2:  # twice in a row nothing gained
            break
    if not measured:
        measured[call.rows] = _seconds(rendezvous, call, device)
    guest.leave()
    return Curve(measured), call


def _seconds(rendezvous: Rendezvous, call: Call, device: Device) -> float:
    """The best of several, after one that finds kernels for the shape. More of quick ones, which more disturbs."""
    rendezvous.forward([call])
    device.finish()
    rounds: list[float] = []
    while len(rounds) < _LEAST_ROUNDS or sum(rounds) < _LEAST_SECONDS:
        begin = time.monotonic()
        rendezvous.forward([call])
        device.finish()
        rounds.append(time.monotonic() - begin)
    return min(rounds)


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


@dataclass(frozen=True)
class _Made:
    pictures: list[np.ndarray]  # [height, width, 3], 0 to 255
    shared: bool  # whether fewer forwards were made than the requests had asked for


@torch.no_grad()
def _made(model: TextToImage, requests: list[Params]) -> _Made:
    """In this thread, by an engine that shares whatever fits together."""
    engine = Engine(model, Policy(Curve({1: 1.0}), _MOST_ROWS))
    with _forwards(model) as made:
        jobs = engine.submit(
            requests, timeout=math.inf, request_id="warm-up", watch=Watch(lambda _: None, lambda _step, _of: True)
        )
        while engine.open_jobs:
            engine.step()
    name = model.snapshot.pipeline
    try:
        outputs = [job.future.result().output for job in jobs]
        pictures = [np.asarray(output.images[0], dtype=float) for output in outputs]
    except ServingError as error:
        raise ModelNotLoadable(f"{name} loaded but failed on a warm-up picture; the log line before this says where") from error
    except (AttributeError, IndexError, TypeError) as error:
        raise ModelNotLoadable(f"{name} returned no images: it is no text-to-image pipeline") from error
    return _Made(pictures, len(made) < sum(job.forwards for job in jobs))


@contextmanager
def _forwards(model: TextToImage) -> Iterator[list[None]]:
    """An entry for each that is begun."""
    made: list[None] = []
    denoiser = getattr(Rendezvous(model.pipe), "denoiser", None)
    hook = denoiser.register_forward_pre_hook(lambda *_: made.append(None)) if denoiser else None
    try:
        yield made
    finally:
        if hook:
            hook.remove()
