"""What test_batching.py proves of nineteen families, of those in newer_families.py."""

import dataclasses
import functools
import inspect
from types import SimpleNamespace

import pytest
from diffusers.pipelines.longcat_image import pipeline_longcat_image
from diffusers.pipelines.prx import pipeline_prx

import newer_families as newer
from company import Family, bare, difference, forwards_of, in_company, in_turn, mixing_rows, pixels, self_check
from fakes import params

FAMILIES = [
    newer.flux_2,
    newer.latent_consistency,
    newer.pixart_alpha,
    newer.sana_sprint,
    newer.ovis_image,
    newer.longcat_image,
    newer.prx,
    newer.bria,
    newer.bria_fibo,
    newer.krea_2,
    newer.ernie_image,
    newer.nucleus_moe_image,
    newer.lumina,
    newer.hunyuan_image,
    newer.kandinsky_3,
    newer.kandinsky_5,
    newer.deepfloyd_if,
    newer.ideogram_4,
]
IN_TURN = [newer.qwen_image_2_1]
# Attributes that are in no configuration, so that a toy is loaded with those of the real model.
BY_HEART = {
    newer.hunyuan_image: {"tokenizer_max_length": 200},
    newer.longcat_image: {"tokenizer_max_length": 48},
    newer.kandinsky_5: {"resolutions": [(64, 64), (128, 64), (64, 128)]},
}
# Requests of Family.kinds() that the pipeline itself refuses or fails at: guidance below 1, and two pictures with guidance.
NOT_TAKEN = {newer.prx: {"ice", "red"}}
SLOW = {newer.ideogram_4}  # whatever is written, it reads 2048 tokens
STEPS = {newer.sana_sprint: 2}  # the only number that its default of another argument allows


class Newer(Family):
    def __init__(self, make, folder):
        super().__init__(make, folder)
        for name, value in BY_HEART.get(make, {}).items():
            setattr(self.pipe, name, value)
            setattr(self.model.pipe, name, value)

        self.pipe.__class__ = _as_others_are(type(self.pipe))

    def kinds(self):
        kinds = [request for request in super().kinds() if request.prompt not in NOT_TAKEN.get(self.make, ())]
        kinds = kinds[::2] if self.make in SLOW else kinds
        steps = STEPS.get(self.make)
        return [dataclasses.replace(request, num_inference_steps=steps) for request in kinds] if steps else kinds


def _as_others_are(kind: type) -> type:
    """Guidance by a scale, no language model that writes prompts anew, and an answer with `images`."""
    besides = {"guidance_schedule": None, "enable_prompt_rewrite": False, "use_pe": False}
    besides = {name: value for name, value in besides.items() if name in inspect.signature(kind.__call__).parameters}

    @functools.wraps(kind.__call__)
    def call(self, **arguments):
        output = kind.__call__(self, **arguments, **besides)
        return output if hasattr(output, "images") else SimpleNamespace(images=output[0])

    return type(kind.__name__, (kind,), {"__call__": call})


@pytest.fixture(scope="module", autouse=True)
def plain_words():
    """PRX mends broken Unicode with a library that is not installed here. LongCat sets pages of instructions before a prompt,
    which is a book to a tokenizer that knows only bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_prx, "ftfy", SimpleNamespace(fix_text=str), raising=False)
        patch.setattr(pipeline_longcat_image, "SYSTEM_PROMPT_EN", "Say it at length.")
        yield


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda make: make.__name__)
def family(request, plain_words, tmp_path_factory) -> Newer:
    return Newer(request.param, tmp_path_factory.mktemp(request.param.__name__))


def test_the_self_check_tells_what_may_be_shared(family):
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
    steps = STEPS.get(family.make)
    given = {"seed": 1, "num_inference_steps": steps or 2, "guidance_scale": 7.0, "width": family.side, "height": family.side}
    before = pixels(bare(family.pipe, params("one", **given)))
    changes = {"prompt": "two", "negative_prompt": "not", "guidance_scale": 3.0, "num_inference_steps": steps or 4, "seed": 2}
    for name, value in changes.items():
        shown = difference(before, pixels(bare(family.pipe, params(**{"prompt": "one", **given, name: value}))))
        shows = name in family.model.limits.supported | {"seed"} and value != given.get(name)
        assert shown > 5 if shows else shown == 0, name


def test_nothing_leaks_from_one_request_to_the_next(family):
    for request, got in in_turn(family.model, family.kinds()[::2]):
        assert difference(family.alone(request), got) <= 1, request.prompt


@pytest.mark.parametrize("make", IN_TURN)
def test_what_cannot_be_shared_is_found_and_served_in_turn(make, tmp_path):
    family = Newer(make, tmp_path)
    kinds = family.kinds()[:8]
    shares, max_rows = self_check(family)
    assert not shares
    for request, got in zip(kinds, in_company(family.model, kinds, max_rows), strict=True):
        assert difference(family.alone(request)[..., :3], got[..., :3]) <= 1, request.prompt


def test_pictures_have_three_colours(tmp_path):
    family = Newer(newer.qwen_image_2_1, tmp_path)
    [picture] = in_company(family.model, [family.asked("one", seed=1)])
    assert picture.shape[-1] == 3
