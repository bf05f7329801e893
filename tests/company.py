"""Pictures made in company, and the same made alone by the bare, unmodified `pipe(...)`.

Alone means: by the pipeline as diffusers loads it, which no line of the predictor touches. In company means: by an engine,
among requests that differ in all that a caller can choose.
"""

import copy
import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import DiffusionPipeline

import toys
from fakes import params
from predictor.engine import Engine
from predictor.model import TextToImage, load
from predictor.policy import Policy
from predictor.settings import Settings
from predictor.speed import Curve
from predictor.warmup import warm_up


class Family:
    """One pipeline on a volume, loaded twice: by diffusers and by the predictor."""

    def __init__(self, make, folder, dtype: str = "float32", **settings) -> None:
        """`settings`: what an operator would say of the model, where its repository does not."""
        self.make = make
        made = make(folder)
        path = toys.publish(made, folder / "volume", "toy/model")
        left_out = {name: None for name, component in made.components.items() if component is None}
        self.pipe = DiffusionPipeline.from_pretrained(path, dtype=getattr(torch, dtype), **left_out)
        self.pipe.set_progress_bar_config(disable=True)
        said = Settings(model_id="toy/model", root=folder / "volume", device="cpu", dtype=dtype, **settings)
        self.model = load(said, lambda phase: None)
        self.side = max(8 * self.model.limits.multiple, 32)  # pixels; 64 tokens and more
        self._alone: dict = {}

    def asked(self, prompt: str, **overrides):
        """A request with as much of `overrides` as the model knows."""
        limits = self.model.limits
        given = {"width": self.side, "height": self.side, "guidance_scale": limits.guidance_scale} | overrides
        known = limits.supported | {"width", "height", "seed", "num_inference_steps", "scheduler"}
        return params(prompt, **{name: value for name, value in given.items() if name in known})

    def kinds(self):
        """A request of every kind."""
        wide, tall = {"width": 2 * self.side}, {"height": 2 * self.side}
        first, second = (*self.samplers(), None, None)[:2]
        return [
            self.asked("one", seed=1, num_inference_steps=3),
            self.asked("one", seed=2, num_inference_steps=3),
            self.asked("two", seed=3, num_inference_steps=2, guidance_scale=9.0),
            self.asked("six", seed=4, num_inference_steps=3, guidance_scale=1.0),
            self.asked("ice", seed=5, num_inference_steps=2, guidance_scale=0.0),
            self.asked("ten", seed=6, num_inference_steps=3, guidance_scale=7.0, negative_prompt="not"),
            self.asked("red", seed=7, num_inference_steps=2, num_images_per_prompt=2),
            self.asked("sky", seed=8, num_inference_steps=3, scheduler=first),
            self.asked("sea", seed=9, num_inference_steps=4, scheduler=second),
            self.asked("fox", seed=10, num_inference_steps=2, **wide),
            self.asked("owl", seed=11, num_inference_steps=2, **tall),
            self.asked("of another length", seed=12, num_inference_steps=2),
        ]

    def samplers(self) -> list[str]:
        """Of those that can take the place of the model's own."""
        own = type(self.pipe.scheduler).__name__
        usual = ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler")
        return [name for name in usual if name in self.model.samplers and name != own]

    def alone(self, request) -> np.ndarray:
        """[images, height, width, 3] of 255, made once."""
        if request not in self._alone:
            self._alone[request] = pixels(bare(self.pipe, request))
        return self._alone[request]


@torch.no_grad()
def bare(pipe, request):
    pipe = copy.copy(pipe)
    takes = inspect.signature(pipe.__call__).parameters
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    if request.scheduler:
        [kind] = [each for each in pipe.scheduler.compatibles if each.__name__ == request.scheduler]
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    given = {name: value for name, value in vars(request).items() if name in takes and value is not None}
    given |= {"use_resolution_binning": False} if "use_resolution_binning" in takes else {}
    return pipe(**given, generator=[torch.Generator().manual_seed(seed) for seed in request.seeds])


def pixels(output) -> np.ndarray:
    images = output.images if hasattr(output, "images") else output[0]
    if isinstance(images, torch.Tensor):  # [n, 3, height, width], 0 to 1
        images = (images.float().permute(0, 2, 3, 1) * 255).round().numpy()
    return np.stack([np.asarray(image, dtype=int) for image in images])


def new_engine(model: TextToImage, max_rows: int, fixed_rows: bool = False) -> Engine:
    return Engine(model, Policy(Curve({1: 1.0}), max_rows, fixed_rows=fixed_rows))


def self_check(family: Family) -> tuple[bool, int]:
    """Whether requests may share forwards, and the limit that the engine is given."""
    limits = dataclasses.replace(family.model.limits, width=family.side, height=family.side)
    found = warm_up(dataclasses.replace(family.model, limits=limits), max_rows=4)
    return found.shares, found.row_limit


def in_company(model: TextToImage, requests, max_rows=64, early=3, fixed_rows=False):
    """The first `early` of them are under way when the others join."""
    engine = new_engine(model, max_rows, fixed_rows)
    with torch.no_grad():
        jobs = engine.submit(requests[:early], timeout=600, request_id="r")
        engine.step()
        jobs += engine.submit(requests[early:], timeout=600, request_id="r")
        while engine.open_jobs:
            engine.step()
    return [pixels(job.future.result().output) for job in jobs]


def in_turn(model: TextToImage, requests, max_rows=64, fixed_rows=False):
    """By one engine, each when the one before is done."""
    engine = new_engine(model, max_rows, fixed_rows)
    for request in requests:
        with torch.no_grad():
            [job] = engine.submit([request], timeout=600, request_id="r")
            while engine.open_jobs:
                engine.step()
        yield request, pixels(job.future.result().output)


def denoiser(model: TextToImage) -> torch.nn.Module:
    return model.pipe.components.get("unet") or model.pipe.components["transformer"]


@contextmanager
def forwards_of(model: TextToImage) -> Iterator[list]:
    seen: list = []
    hook = denoiser(model).register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def mixing_rows(model: TextToImage) -> Iterator[None]:
    """While it lasts, the denoiser gives its first half of rows what belongs to its second."""

    def swap_halves(module, args, output):
        rows, half = output[0], len(output[0]) // 2
        swapped = [*rows[half:], *rows[:half]] if isinstance(rows, list) else torch.cat([rows[half:], rows[:half]])
        return (swapped,) if isinstance(output, tuple) else type(output)(swapped)

    hook = denoiser(model).register_forward_hook(swap_halves)
    try:
        yield
    finally:
        hook.remove()


def difference(expected: np.ndarray, got: np.ndarray) -> int:
    """The largest of any pixel, of 255."""
    assert expected.shape == got.shape
    return int(np.abs(expected - got).max())


def every_pair(kinds):
    """A row in which each kind comes once right after each, itself included: a de Bruijn sequence of order two."""
    for i, kind in enumerate(kinds):
        yield kind
        for other in kinds[i + 1 :]:
            yield kind
            yield other
    yield kinds[0]
