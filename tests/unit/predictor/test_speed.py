import random

import pytest

from fakes import params
from predictor.speed import Curve, Speed

LAUNCH_BOUND = {rows: 0.02 for rows in (1, 2, 4, 8, 16, 32)}  # a small model: the device is never full
COMPUTE_BOUND = {rows: 0.1 * rows for rows in (1, 2, 4, 8)}  # a large one: full with a single row
USUAL = {1: 0.020, 2: 0.021, 4: 0.024, 8: 0.038, 16: 0.070, 32: 0.138}

SIZES = [(64, 64), (64, 96), (96, 96), (128, 96), (128, 128), (192, 128), (256, 256)]


def speed(measured=None, row_limit: int = 8, **settings) -> Speed:
    return Speed(Curve(measured or USUAL), row_limit, **settings)


def factor(asked) -> float:
    return asked.width * asked.height / 64**2


def estimate(known: Speed, **asked):
    request = params(**asked)
    return known.estimate(request, factor(request))


# ---------------------------------------------------------------- the curve


@pytest.mark.parametrize(
    ("work", "seconds"),
    [(0.25, 0.02), (1, 0.02), (2, 0.02), (3, 0.03), (4, 0.04), (5, 0.06), (6, 0.08), (9, 0.12), (60, 0.8)],
)
def test_seconds_between_before_and_beyond_what_was_measured(work, seconds):
    assert Curve({2: 0.02, 4: 0.04, 6: 0.08}).seconds(work) == pytest.approx(seconds)


def test_a_single_measurement_will_do():
    curve = Curve({1: 0.5})
    assert [curve.seconds(work) for work in (0.1, 1, 3)] == [0.5, 0.5, 1.5]
    assert curve.knee == 1


@pytest.mark.parametrize(
    ("measured", "knee"),
    [
        (LAUNCH_BOUND, 32),
        (COMPUTE_BOUND, 1),
        (USUAL, 16),
        ({1: 0.02, 2: 0.03, 4: 0.06, 8: 0.06}, 8),  # one measured in a bad moment hides nothing
        ({1: 0.02, 2: 0.03, 4: 0.06, 8: 0.111}, 2),  # a little more throughput is not worth four times the company
        ({2: 0.02, 4: 0.021, 16: 0.08}, 4),  # not every number of rows can be measured
    ],
)
def test_the_knee_is_where_more_rows_no_longer_pay(measured, knee):
    assert Curve(measured).knee == knee


@pytest.mark.parametrize("seed", range(20))
def test_a_little_noise_moves_no_knee_that_is_plain(seed):
    noise = random.Random(seed)

    def noisy(measured):
        return Curve({rows: seconds * noise.uniform(0.96, 1.04) for rows, seconds in measured.items()})

    assert noisy(LAUNCH_BOUND).knee == 32
    assert noisy(COMPUTE_BOUND).knee == 1
    assert noisy(USUAL).knee in (4, 8, 16)


# ---------------------------------------------------------------- a first estimate


def test_an_estimate_before_anything_is_known():
    guided = estimate(speed(), num_inference_steps=10, guidance_scale=7.5, num_images_per_prompt=2)
    assert (guided.rows, guided.forwards, guided.factor, guided.size) == (4, 10, 1.0, (64, 64))
    assert guided.alone == pytest.approx(0.024)
    assert guided.shared == pytest.approx(0.038 * 4 / 8)
    assert guided.asides == 0
    assert estimate(speed(), guidance_scale=1.0).rows == estimate(speed()).rows == 1


def test_who_fills_a_forward_alone_shares_it_with_nobody():
    large = estimate(speed(row_limit=2), num_images_per_prompt=4)
    assert large.shared == large.alone == pytest.approx(0.024)


@pytest.mark.parametrize(("pixels", "rows", "fixed"), [(0.5, 16, 16), (1, 8, 8), (1.5, 5, 4), (4, 2, 2), (9, 1, 1)])
def test_fewer_rows_of_large_pictures_share_a_forward(pixels, rows, fixed):
    assert speed().most_rows(pixels) == rows
    assert speed().least_rows(pixels) == 0
    assert speed(fixed_rows=True).least_rows(pixels) == speed(fixed_rows=True).most_rows(pixels) == fixed


@pytest.mark.parametrize("measured", [LAUNCH_BOUND, COMPUTE_BOUND, USUAL])
@pytest.mark.parametrize("fixed_rows", [False, True])
def test_more_steps_and_larger_pictures_never_take_less(measured, fixed_rows):
    known = speed(measured, fixed_rows=fixed_rows)
    known.note_text(0.1)
    known.note_decode(params(), 1.0, 0.5)
    by_steps = [estimate(known, num_inference_steps=steps) for steps in range(1, 60)]
    assert [each.forwards for each in by_steps] == sorted({each.forwards for each in by_steps})
    by_size = [estimate(known, width=width, height=height) for width, height in SIZES]
    # Fixed rows are whole ones: eight of 1.0 are more work than five of 1.5.
    for what in ("shared", "asides") if fixed_rows else ("alone", "shared", "asides"):
        seconds = [getattr(each, what) for each in by_size]
        assert seconds == sorted(seconds), what
    assert by_size[0].asides < by_size[-1].asides


def test_with_fixed_rows_company_changes_nothing_in_the_time_of_a_forward():
    known = speed(fixed_rows=True)
    alone = estimate(known)
    assert alone.alone == pytest.approx(USUAL[8])
    assert alone.shared == pytest.approx(USUAL[8] / 8)
    assert known.seconds(1, 1.0, "size") == known.seconds(8, 1.0, "size") == USUAL[8]
    assert known.seconds(16, 1.0, "size") == USUAL[16]


def test_a_lower_limit_counts_at_once():
    known = speed()
    known.row_limit = 4
    assert known.most_rows(1.0) == 4
    assert estimate(known).shared == pytest.approx(USUAL[4] / 4)


# ---------------------------------------------------------------- what is learned


def test_rows_of_a_picture_are_learned_with_guidance_and_without():
    known = speed()
    known.note_rows(params(guidance_scale=7.5, num_images_per_prompt=2), 6)  # three rows a picture: perturbed attention
    assert estimate(known, guidance_scale=5.0).rows == 3
    assert estimate(known, guidance_scale=1.0).rows == 1
    known.note_rows(params(guidance_scale=1.0), 2)
    assert estimate(known, num_images_per_prompt=3).rows == 6


def test_forwards_of_a_step_are_learned_by_sampler():
    known = speed()
    known.note_finished(params(num_inference_steps=10, scheduler="Heun"), 19)
    assert estimate(known, num_inference_steps=20, scheduler="Heun").forwards == pytest.approx(38)
    assert estimate(known, num_inference_steps=20).forwards == 20


def test_a_picture_that_needed_no_forward_makes_none_free():
    known = speed()
    known.note_finished(params(num_inference_steps=10), 0)
    assert estimate(known, num_inference_steps=10).forwards > 0


def test_forwards_of_a_step_are_learned_with_guidance_and_without():
    """True guidance of many transformers (Qwen-Image, Chroma, CogView 4) is a second forward and no second row."""
    known = speed()
    known.note_finished(params(num_inference_steps=10, guidance_scale=4.0), 20)
    known.note_finished(params(num_inference_steps=10, guidance_scale=1.0), 10)
    assert estimate(known, num_inference_steps=10, guidance_scale=4.0).forwards == 20


def test_whoever_comes_brings_a_row():
    """A denoiser that is given one picture of four at a time."""
    known = speed()
    known.note_rows(params(num_images_per_prompt=4), 1)
    assert estimate(known).rows == 1
    assert estimate(known).shared > 0


def test_asides_are_learned_text_of_a_request_and_decoding_of_a_picture_of_default_size():
    known = speed()
    known.note_text(0.1)
    known.note_decode(params(num_images_per_prompt=2), 4.0, 1.6)
    assert estimate(known).asides == pytest.approx(0.1 + 0.2)
    assert estimate(known, num_images_per_prompt=3, width=128).asides == pytest.approx(0.1 + 0.2 * 6)
    known.note_text(1.1)  # one that was slow, by chance
    assert estimate(known).asides == pytest.approx(0.2 + 0.2)


def test_a_tiny_picture_tells_nothing_bad_of_the_text_encoder():
    known = speed()
    known.note_text(5.0)
    known.note_decode(params(width=16, height=16), 1 / 16, 0.01)
    assert estimate(known).asides == pytest.approx(5.16)


def test_one_slow_forward_does_not_condemn_a_size():
    """Kernels are loaded on the first; nor is anybody refused for good because of what is lately slow."""
    known = speed()
    expected = known.seconds(1, 4.0, (128, 128))
    known.note_forward(1, 4.0, (128, 128), 40 * expected)
    assert known.seconds(1, 4.0, (128, 128)) == pytest.approx(1.1 * expected)
    assert estimate(known, width=128, height=128).slowdown == pytest.approx(1.1)
    known.note_forward(1, 4.0, (128, 128), expected / 100)
    assert estimate(known, width=128, height=128).slowdown < 1.1


def test_a_size_that_is_slower_than_the_curve_says_is_learned_for_itself():
    known = speed()
    before = estimate(known, width=128, height=128)
    expected = known.seconds(1, 4.0, (128, 128))
    for count in range(100):
        known.note_forward(1, 4.0, (128, 128), 2 * expected)
        if not count:
            first = known.seconds(1, 4.0, (128, 128))
    assert expected < first < 1.2 * expected  # a single forward may have been slow by chance
    assert known.seconds(1, 4.0, (128, 128)) == pytest.approx(2 * expected, rel=0.01)
    after = estimate(known, width=128, height=128)
    assert (after.alone, after.shared) == pytest.approx((2 * before.alone, 2 * before.shared), rel=0.01)
    assert estimate(known) == estimate(speed())


def test_forwards_as_long_as_expected_correct_nothing():
    for known in (speed(), speed(fixed_rows=True)):
        for rows in (1, 3, 8, 40):
            known.note_forward(rows, 1.0, (64, 64), known.seconds(rows, 1.0, (64, 64)))
        assert known.seconds(8, 1.0, (64, 64)) == pytest.approx(USUAL[8])
