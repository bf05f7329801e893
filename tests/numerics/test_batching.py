"""Pictures made in company against pictures made alone by the bare, unmodified `pipe(...)`.

Alone means: by the pipeline as diffusers loads it, which no line of the predictor touches. In company means: by an engine,
among requests that differ in all that a caller can choose.
"""

import copy
import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import families
import toys
from fakes import params
from predictor.engine import Engine, Policy
from predictor.model import TextToImage, load
from predictor.settings import Settings
from predictor.speed import Curve
from predictor.warmup import warm_up

FAMILIES = [
    toys.stable_diffusion,
    families.stable_diffusion_2,
    toys.stable_diffusion_xl,
    families.stable_diffusion_xl_turbo,
    toys.stable_diffusion_3,
    toys.flux,
    families.flux_schnell,
    families.flux_2_klein,
    families.chroma,
    families.qwen_image,
    families.z_image,
    families.pixart_sigma,
    families.sana,
    families.aura_flow,
    families.hunyuan_dit,
    families.kolors,
    families.lumina_2,
    families.cogview_3_plus,
    families.cogview_4,
]
# What an operator would say of a model, where its repository does not.
SAID = {families.stable_diffusion_xl_turbo: {"default_guidance": 0.0, "default_steps": 2}}


class Family:
    """One pipeline on a volume, loaded twice: by diffusers and by the predictor."""

    def __init__(self, make, folder, dtype: str = "float32", **settings) -> None:
        self.make = make
        made = make(folder)
        path = toys.publish(made, folder / "volume", "toy/model")
        left_out = {name: None for name, component in made.components.items() if component is None}
        self.pipe = DiffusionPipeline.from_pretrained(path, dtype=getattr(torch, dtype), **left_out)
        self.pipe.set_progress_bar_config(disable=True)
        said = {"device": "cpu", "dtype": dtype, **SAID.get(make, {}), **settings}
        self.model = load(Settings(model_id="toy/model", root=folder / "volume", **said), lambda phase: None)
        self.side = max(8 * self.model.limits.multiple, 32)  # pixels; 64 tokens and more
        if make is families.hidream:  # knows its native size by heart, and it is not a toy's
            self.pipe.default_sample_size = self.model.pipe.default_sample_size = 16
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
    images = output.images
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
        [rows], half = output, len(output[0]) // 2
        return ([*rows[half:], *rows[:half]],) if isinstance(rows, list) else (torch.cat([rows[half:], rows[:half]]),)

    hook = denoiser(model).register_forward_hook(swap_halves)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda make: make.__name__)
def family(request, tmp_path_factory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param.__name__))


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


def test_the_self_check_tells_what_may_be_shared(family):
    """Before any picture is made: some pipelines change their tokenizer when they make one."""
    assert self_check(family)[0]
    with mixing_rows(family.model):
        assert not self_check(family)[0]


def test_mixed_requests_come_out_as_if_alone(family):
    requests = family.kinds()
    with forwards_of(family.model) as shared:
        together = in_company(family.model, requests)
    with forwards_of(family) as single:
        lonely = [family.alone(request) for request in requests]
    for request, expected, got in zip(requests, lonely, together, strict=True):
        assert difference(expected, got) <= 1, request.prompt
    assert len(shared) < 0.6 * len(single)


def test_all_that_is_offered_shows_and_nothing_else_does(family):
    """Or else a picture with another's row would look the same, and the test above could not fail."""
    limits, given = family.model.limits, {"seed": 1, "num_inference_steps": 2, "guidance_scale": 7.0}
    before = pixels(bare(family.pipe, params("one", width=family.side, height=family.side, **given)))
    for name, value in {"prompt": "two", "negative_prompt": "not", "guidance_scale": 3.0, "num_inference_steps": 4}.items():
        changed = params(**{"prompt": "one", "width": family.side, "height": family.side, **given, name: value})
        shown = difference(before, pixels(bare(family.pipe, changed)))
        assert shown > 5 if name in limits.supported else shown == 0, name


def test_position_in_the_batch_does_not_matter(family):
    """Last first, some of them early, and no room for all."""
    order = family.kinds()[5:0:-1]
    for request, got in zip(order, in_company(family.model, order, max_rows=5, early=2), strict=True):
        assert difference(family.alone(request), got) <= 1, request.prompt


def test_images_of_one_prompt_can_be_made_again_alone(family):
    two, one = (family.asked("two of them", seed=11, num_images_per_prompt=2), family.asked("two of them", seed=12))
    [both] = in_company(family.model, [two])
    assert difference(both[1:], family.alone(one)) <= 1


def test_nothing_leaks_from_one_request_to_the_next(family):
    kinds = family.kinds()
    order = every_pair(kinds) if family.make is toys.stable_diffusion else kinds
    for request, got in in_turn(family.model, order):
        assert difference(family.alone(request), got) <= 1, request.prompt


def test_texts_of_any_length_share_where_the_denoiser_takes_a_mask(tmp_path):
    family = Family(families.qwen_image, tmp_path)
    requests = [
        family.asked(prompt, seed=1, num_inference_steps=2) for prompt in ("one", "another one", "of yet another length")
    ]
    with forwards_of(family.model) as shared:
        together = in_company(family.model, requests)
    assert len(shared) == 2
    for request, got in zip(requests, together, strict=True):
        assert difference(family.alone(request), got) <= 1


@pytest.mark.parametrize("make", [toys.stable_diffusion_xl, toys.stable_diffusion_3, toys.flux, families.lumina_2])
def test_bfloat16_in_company_is_as_good_as_alone(make, tmp_path):
    """Another number of rows is another order of additions, and another rounding. A wrong row differs by tens."""
    family = Family(make, tmp_path, dtype="bfloat16")
    requests = family.kinds()[:6]
    for request, got in zip(requests, in_company(family.model, requests), strict=True):
        assert np.abs(family.alone(request) - got).mean() < 4, request.prompt


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_fixed_rows_company_changes_no_bit(dtype, tmp_path):
    family = Family(toys.stable_diffusion_3, tmp_path, dtype=dtype)
    requests = family.kinds()
    alone = in_turn(family.model, requests, max_rows=8, fixed_rows=True)
    together = in_company(family.model, requests, max_rows=8, fixed_rows=True)
    for (request, expected), got in zip(alone, together, strict=True):
        assert difference(expected, got) == 0, request.prompt


@pytest.mark.parametrize("make", [families.stable_diffusion_pag, families.hidream])
def test_what_cannot_be_shared_is_found_and_served_in_turn(make, tmp_path):
    family = Family(make, tmp_path)
    kinds = family.kinds()[:4]
    shares, max_rows = self_check(family)
    assert not shares
    for request, got in zip(kinds, in_company(family.model, kinds, max_rows), strict=True):
        assert difference(family.alone(request), got) <= 1, request.prompt
