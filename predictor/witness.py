"""Looks on while the first pictures are made, and learns what no configuration tells.

How much of a prompt is read: where a pipeline cuts is in its code and not always in its signature, so its tokenizers are
watched. And what latents look like, for previews: so what goes into the decoder is watched, and what the sampler ended with.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from predictor.device import Device
from predictor.model import TextToImage, Tokenizer
from predictor.preview import Preview, Sample, decoded, linear
from predictor.rendezvous import StandIn, decoders

_MOST_FORWARDS_A_PREVIEW = 2.0


class Witness:
    def __init__(self, model: TextToImage) -> None:
        pipe = copy.copy(model.pipe)
        self._sampler = _WatchedSampler()
        self._tokenizers = {
            name: _WatchedTokenizer(part) for name, part in pipe.components.items() if isinstance(part, PreTrainedTokenizerBase)
        }
        device = Device(pipe.device, time.monotonic)
        self._decoders = {name: _WatchedDecoder(decoder, device) for name, decoder in decoders(pipe).items()}
        pipe.__dict__.update(self._tokenizers | self._decoders)
        self._original = model
        self._samples: list[Sample] = []
        self._prompts: list[str] = []
        self.model = dataclasses.replace(model, pipe=pipe, preview=self._sampler)  # to make pictures with, one by one

    def saw(self, prompt: str, picture: np.ndarray) -> None:
        """`picture`, [height, width, 3] of 255, has been made for `prompt`."""
        self._prompts.append(prompt)
        if self._sampler.latents is None or len(self._decoders) != 1:
            return
        [decoder] = self._decoders.values()
        latents, _ = decoder.last()
        if latents is not None:
            image = torch.from_numpy(picture).permute(2, 0, 1)[None].float().to(latents.device) / 255
            self._samples.append(Sample(self._sampler.latents, latents, image))

    def enlightened(self, forward_seconds: float) -> TextToImage:
        """The model, with what was learned. `forward_seconds`: of a forward of one row."""
        seen = {name: tokenizer.as_seen(self._prompts) for name, tokenizer in self._tokenizers.items()}
        tokenizers = {**self._original.tokenizers, **{name: tokenizer for name, tokenizer in seen.items() if tokenizer}}
        return dataclasses.replace(self._original, tokenizers=tokenizers, preview=self._preview(forward_seconds))

    @torch.no_grad()
    def _preview(self, forward_seconds: float) -> Preview | None:
        """The decoder itself where it is quick, or else a matrix."""
        if not self._samples:
            return None
        [(name, decoder)] = self._decoders.items()
        if decoder.last()[1] <= _MOST_FORWARDS_A_PREVIEW * forward_seconds:
            found = decoded(getattr(self._original.pipe, name).decode, self._samples)
            if found:
                return found
        return linear(self._samples)


class _WatchedSampler:
    """Remembers what each picture's sampler ended with: stands where the previews come from that it helps to make."""

    def __init__(self) -> None:
        self.latents: Tensor | None = None

    def __call__(self, latents: Tensor, aspect: float) -> Tensor:
        self.latents = latents
        return latents.new_zeros(1, 3, 1, 1)


class _WatchedDecoder(StandIn):
    """Remembers what it decoded last, and how long that took."""

    def __init__(self, decoder: Any, device: Device) -> None:
        super().__init__(decoder)
        self._device = device
        self._latents: Tensor | None = None
        self._seconds = math.inf

    def last(self) -> tuple[Tensor | None, float]:
        return self._latents, self._seconds

    def decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._device.finish()
        begin = time.monotonic()
        decoded = self._original.decode(latents, *args, **kwargs)
        self._device.finish()
        self._latents, self._seconds = latents, time.monotonic() - begin
        return decoded


class _WatchedTokenizer(StandIn):
    """A tokenizer that remembers what the pipeline has it cut, and to what length."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self._cuts: list[tuple[str, int]] = []  # texts and the lengths they were cut to

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        whole = text[0] if isinstance(text, list) and len(text) == 1 else text
        if options.get("truncation") and options.get("max_length") and isinstance(whole, str):
            self._cuts.append((whole, options["max_length"]))
        return self._original(text, *args, **options)

    def as_seen(self, prompts: list[str]) -> Tokenizer | None:
        """None when no prompt came by. What a pipeline puts around a prompt, a template, is not the prompt's."""
        encode = copy.deepcopy(self._original)
        reads = [
            longest - len(encode(whole).input_ids) + len(encode(prompt).input_ids)
            for whole, longest in self._cuts
            for prompt in prompts
            if prompt in whole
        ]
        return Tokenizer(encode, min(reads)) if reads else None
