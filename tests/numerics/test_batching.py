"""Nineteen families, made in company and alone."""

import numpy as np
import pytest

import families
import toys
from company import Family, bare, difference, every_pair, forwards_of, in_company, in_turn, mixing_rows, pixels, self_check
from fakes import params


@pytest.fixture(scope="module", params=families.SHARING, ids=lambda make: make.__name__)
def family(request, tmp_path_factory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param.__name__), **families.SAID.get(request.param, {}))


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
    if make is families.hidream:  # knows its native size by heart, and it is not a toy's
        family.pipe.default_sample_size = family.model.pipe.default_sample_size = 16
    kinds = family.kinds()[:4]
    shares, max_rows = self_check(family)
    assert not shares
    for request, got in zip(kinds, in_company(family.model, kinds, max_rows), strict=True):
        assert difference(family.alone(request), got) <= 1, request.prompt
