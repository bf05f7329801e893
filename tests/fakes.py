"""A pipeline with the manners of a diffusers one and arithmetic that can be done in the head, for tests of logic."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from predictor.job import Job
from predictor.request import Limits, Params

LIMITS = Limits(
    supported=frozenset("prompt negative_prompt width height num_inference_steps guidance_scale num_images_per_prompt".split()),
    width=512,
    height=512,
    multiple=8,
    min_side=128,
    max_side=2048,
    max_pixels=1024 * 1024,
    num_inference_steps=50,
    max_steps=150,
    guidance_scale=7.5,
    max_guidance=50.0,
    max_images=4,
    schedulers=("DDIMScheduler", "EulerDiscreteScheduler"),
    max_prompt_chars=100,
    max_cost=8.0,
)

POISON = -1.0  # a row that no denoiser can bear


def params(prompt: str = "p", **overrides: Any) -> Params:
    given = {"width": 64, "height": 64, "num_inference_steps": 3, "seed": 1} | overrides
    return Params(prompt=prompt, **given)


class Denoiser(torch.nn.Module):
    """Adds its scale to every element; remembers how many rows each forward had."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = {"sample_size": 8}
        self.forwards: list[int] = []
        self.before: Callable[[], None] = lambda: None

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, scale: torch.Tensor, return_dict: bool = True) -> tuple:
        self.before()
        self.forwards.append(len(sample))
        if (sample == POISON).any():
            raise ValueError("a prompt that must not be told")
        assert timestep.shape == (len(sample),)
        return (sample + scale,)


class Decoder:
    """Decodes sums to themselves; remembers how many pictures each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.before: Callable[[], None] = lambda: None

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.before()
        self.calls.append(len(latents))
        return latents


class Pipe:
    """Each step adds the seed to a latent of the asked size; the images are the sums."""

    def __init__(self) -> None:
        self.unet = Denoiser()
        self.vae = Decoder()
        self.scheduler = None
        self.text: Callable[[], None] = lambda: None

    @torch.no_grad()
    def __call__(self, params: Params, job: Job | None = None) -> SimpleNamespace:
        self.text()
        count = params.num_images_per_prompt
        sample = torch.zeros(count, 1, params.height // 8, params.width // 8)
        if params.prompt == "poison":
            sample += POISON
        scale = torch.full((count, 1, 1, 1), float(params.seed))
        for step in range(params.num_inference_steps):
            if params.prompt == "fails late" and step == 2:
                raise RuntimeError("a prompt that must not be told")
            sample = self.unet(sample, torch.tensor(step), scale=scale, return_dict=False)[0]
            if job:
                job.report(step + 1, params.num_inference_steps, lambda: None)
        sample = self.vae.decode(sample)
        return SimpleNamespace(images=[row.mean().item() for row in sample], grad=torch.is_grad_enabled())


@dataclass
class Model:
    """What an Engine needs of a model, around `Pipe`."""

    pipe: Pipe = field(default_factory=Pipe)

    in_tiles: int = 0

    def generate(self, pipe: Pipe, params: Params, job: Job | None = None) -> SimpleNamespace:
        return pipe(params, job)

    def relative_size(self, params: Params) -> float:
        return params.width * params.height / 64**2

    def decode_in_tiles(self, decode: Callable[[], Any]) -> Any:
        self.in_tiles += 1
        return decode()


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Holds the denoiser inside a forward until opened: `entered` says that it is there."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        denoiser.before = self._wait

    def _wait(self) -> None:
        self.entered.set()
        assert self.opened.wait(60)
