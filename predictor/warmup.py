"""First pictures, before anybody asks: they load kernels, prove that the model works, and tell whether requests may share.

Sharing a forward is safe for a denoiser that treats rows alike and alone. Most do; one that looks at its rows' order or
number (perturbed attention, say) would paint wrong pictures without a word. So two different requests are made alone and
together, and unless they agree, requests take turns.

They also tell how much of a prompt is read: where a pipeline cuts is in its code and not always in its signature, so its
tokenizers are watched while the first picture is made.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from predictor import telemetry
from predictor.engine import Engine
from predictor.errors import ModelNotLoadable, ServingError
from predictor.model import TextToImage, Tokenizer
from predictor.rendezvous import StandIn
from predictor.request import Params

# Out of 255. Two steps of float32 differ by at most 1, of half precision by a few where a pixel is undecided; pictures
# that got each other's rows differ by tens nearly everywhere.
_MOST_MEAN_DIFFERENCE = 2.0

_PROMPT = "a picture"


def warm_up(model: TextToImage, max_rows: int) -> tuple[TextToImage, bool]:
    """The model, now knowing how much its encoders read, and whether requests may share forwards. Raises ModelNotLoadable
    when there is no picture at all."""
    first, second = _params(model, _PROMPT, 1), _params(model, "something else entirely", 2)
    pipe = copy.copy(model.pipe)
    witnesses = {name: _Witness(part) for name, part in pipe.components.items() if isinstance(part, PreTrainedTokenizerBase)}
    pipe.__dict__.update(witnesses)
    alone = _pictures(dataclasses.replace(model, pipe=pipe), [first], max_rows) + _pictures(model, [second], max_rows)
    seen = {name: witness.as_seen() for name, witness in witnesses.items()}
    tokenizers = {**model.tokenizers, **{name: tokenizer for name, tokenizer in seen.items() if tokenizer}}
    return dataclasses.replace(model, tokenizers=tokenizers), _shares(model, [first, second], alone, max_rows)


def _shares(model: TextToImage, requests: list[Params], alone: list[np.ndarray], max_rows: int) -> bool:
    try:
        together = _pictures(model, requests, max_rows)
    except ModelNotLoadable:
        together = []
    differences = [float(np.abs(a - b).mean()) for a, b in zip(alone, together, strict=False) if a.shape == b.shape]
    shares = len(differences) == len(requests) and max(differences) <= _MOST_MEAN_DIFFERENCE
    if not shares:
        telemetry.event("requests take turns: two made together differ from the same made alone", mean_differences=differences)
    return shares


class _Witness(StandIn):
    """A tokenizer that remembers what the pipeline has it cut, and to what length."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self._cuts: list[tuple[str, int]] = []

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        whole = text[0] if isinstance(text, list) and len(text) == 1 else text
        if options.get("truncation") and options.get("max_length") and isinstance(whole, str) and _PROMPT in whole:
            self._cuts.append((whole, options["max_length"]))
        return self._original(text, *args, **options)

    def as_seen(self) -> Tokenizer | None:
        """None when the prompt never came by. What a pipeline puts around the prompt, a template, is not the prompt's."""
        if not self._cuts:
            return None
        encode = copy.deepcopy(self._original)
        plain = len(encode(_PROMPT).input_ids)
        return Tokenizer(encode, min(longest - len(encode(whole).input_ids) + plain for whole, longest in self._cuts))


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
