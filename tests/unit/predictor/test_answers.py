import asyncio
import io
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fakes import params
from predictor.answers import Answers, Previews
from predictor.images import EncodedImage, provenance
from predictor.job import Progress, Result
from predictor.pixels import Pixels
from predictor.snapshot import Snapshot

SNAPSHOT = Snapshot(Path("/nowhere"), "org/model", "c0ffee", None, "ToyPipeline", 0)
WIDTH, HEIGHT = 24, 16


def pixels(count: int = 1) -> Pixels:
    """Each picture in a shade of its own: 50, 51, …"""
    shades = torch.arange(50, 50 + count).view(-1, 1, 1, 1) / 255
    return Pixels(shades.expand(-1, 3, HEIGHT, WIDTH))


def result(count: int = 1, **output: object) -> Result:
    return Result(SimpleNamespace(images=pixels(count), **output), {"queue": 0.25, "decode": 0.5})


def answer(answers: Answers, count: int = 1, made: Result | None = None, **asked: object):
    wanted = params("zebra", num_images_per_prompt=count, **asked)
    return asyncio.run(answers.answer(wanted, made or result(count), (5, 2)))


def shade(image: EncodedImage) -> np.ndarray:
    with Image.open(io.BytesIO(image.data)) as picture:
        return np.unique(np.asarray(picture))


class Signer:
    """Puts its name at the end of a file; remembers what it got, and in which threads."""

    def __init__(self) -> None:
        self.signed: list[tuple[EncodedImage, str, str]] = []
        self.threads: set[threading.Thread] = set()

    def sign(self, image: EncodedImage, model: str, commit: str) -> EncodedImage:
        self.threads.add(threading.current_thread())
        self.signed.append((image, model, commit))
        return replace(image, data=image.data + b"signed")


# ---------------------------------------------------------------- pictures


def test_an_answer_holds_what_the_engine_made():
    told = answer(Answers(SNAPSHOT, embed_prompt=True), 3, seed=7)
    assert [shade(image) for image in told.images] == [50, 51, 52]
    assert {(image.format, image.width, image.height) for image in told.images} == {("png", WIDTH, HEIGHT)}
    assert (told.params.prompt, told.seeds) == ("zebra", (7, 8, 9))
    assert (told.prompt_tokens, told.dropped_tokens) == (5, 2)


def test_encoding_is_the_last_of_the_phases():
    seconds = answer(Answers(SNAPSHOT, embed_prompt=True)).seconds
    assert list(seconds) == ["queue", "decode", "encode"]
    assert (seconds["queue"], seconds["decode"]) == (0.25, 0.5)
    assert seconds["encode"] > 0


def test_each_file_says_what_to_send_to_get_it_again_alone():
    """Size: what came of it, not what was asked for. What the pipeline does not take, or nobody asked for, is not there."""
    told = answer(Answers(SNAPSHOT, embed_prompt=True), 2, seed=7, width=20, height=20, negative_prompt="dots")
    assert [provenance(image.data) for image in told.images] == [
        {
            **{"model": "org/model", "commit": "c0ffee", "pipeline": "ToyPipeline"},
            **{"prompt": "zebra", "negative_prompt": "dots", "width": WIDTH, "height": HEIGHT, "num_inference_steps": 3},
            **{"seed": seed, "num_images_per_prompt": 1, "output_format": "png"},
        }
        for seed in (7, 8)
    ]


def test_prompts_are_left_out_where_the_operator_wants_it():
    told = answer(Answers(SNAPSHOT, embed_prompt=False), negative_prompt="dots")
    made = provenance(told.images[0].data)
    assert made["seed"] == 1
    assert not {"prompt", "negative_prompt"} & set(made)
    assert b"zebra" not in told.images[0].data


def test_format_and_compression_are_those_asked_for():
    answers = Answers(SNAPSHOT, embed_prompt=True)
    noise = Result(SimpleNamespace(images=Pixels(torch.rand(1, 3, 64, 64))), {})
    files = [
        answer(answers, made=noise, output_format="jpeg", output_compression=quality).images[0] for quality in (10, 90, None)
    ]
    assert {image.media_type for image in files} == {"image/jpeg"}
    assert len(files[0].data) < len(files[1].data) < len(files[2].data)


@pytest.mark.parametrize(
    ("output", "flagged"),
    [({}, None), ({"nsfw_content_detected": None}, None), ({"nsfw_content_detected": [np.True_, False]}, (True, False))],
)
def test_flags_are_told_where_the_pipeline_has_them(output, flagged):
    assert answer(Answers(SNAPSHOT, embed_prompt=True), 2, result(2, **output)).flagged == flagged


# ---------------------------------------------------------------- signatures, and what goes in before them


def test_every_picture_is_signed_off_the_event_loop():
    signer = Signer()
    told = answer(Answers(SNAPSHOT, True, signer), 2)
    assert [image.data.endswith(b"signed") for image in told.images] == [True, True]
    assert [(model, commit) for _, model, commit in signer.signed] == [("org/model", "c0ffee")] * 2
    assert threading.current_thread() not in signer.threads


def test_what_a_protocol_wants_inside_is_there_before_the_signature():
    def inscription(params, i, image):
        return "parameters", f"{params.prompt} {i} {params.seeds[i]} {image.width}x{image.height}"

    signer = Signer()
    told = answer(Answers(SNAPSHOT, True, signer, inscription), 2, seed=7)
    texts = []
    for signed, image in zip(sorted(signer.signed, key=lambda each: shade(each[0])), told.images, strict=True):
        assert image.data == signed[0].data + b"signed"
        with Image.open(io.BytesIO(signed[0].data)) as picture:
            texts.append(picture.info["parameters"])
    assert texts == [f"zebra 0 7 {WIDTH}x{HEIGHT}", f"zebra 1 8 {WIDTH}x{HEIGHT}"]
    assert [provenance(image.data)["seed"] for image in told.images] == [7, 8]


def test_a_picture_that_cannot_be_signed_is_not_given_away():
    class Broken(Signer):
        def sign(self, image, model, commit):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        answer(Answers(SNAPSHOT, True, Broken()))


# ---------------------------------------------------------------- previews


def stepped(progress: Progress, previews: Previews, **asked: object):
    signer = Signer()
    answers = Answers(SNAPSHOT, True, signer, lambda *_: ("parameters", "finished"))
    told = asyncio.run(answers.step("running", params("zebra", **asked), progress, previews))
    assert not signer.signed
    return told


def test_a_step_is_told_with_the_preview_that_is_due():
    told = stepped(Progress(3, 20, pixels()), Previews(2))
    assert (told.state, told.step, told.of) == ("running", 3, 20)
    assert (told.preview.format, told.preview.width, told.preview.height) == ("png", WIDTH, HEIGHT)
    assert shade(told.preview) == 50
    assert stepped(Progress(4, 20), Previews(2)).preview is None


def test_previews_say_what_they_are_and_are_not_signed():
    told = stepped(Progress(3, 20, pixels()), Previews(1))
    assert provenance(told.preview.data) == {"preview": True}
    assert b"finished" not in told.preview.data and b"zebra" not in told.preview.data


@pytest.mark.parametrize(
    ("previews", "asked", "expected"),
    [
        (Previews(1), {"output_format": "webp"}, ("webp", WIDTH, HEIGHT)),
        (Previews(1, "jpeg"), {"output_format": "webp"}, ("jpeg", WIDTH, HEIGHT)),
        (Previews(1, full_size=True), {"width": 48, "height": 40}, ("png", 48, 40)),
        (Previews(1, full_size=True), {"width": None, "height": None}, ("png", WIDTH, HEIGHT)),
    ],
)
def test_previews_come_in_the_format_and_size_that_is_wanted(previews, asked, expected):
    told = stepped(Progress(1, 2, pixels()), previews, **asked).preview
    assert (told.format, told.width, told.height) == expected


def test_only_the_first_picture_has_a_preview():
    assert shade(stepped(Progress(1, 2, pixels(3)), Previews(1)).preview) == 50


@pytest.mark.parametrize(
    ("count", "of", "steps"),
    [(0, 20, []), (1, 20, [8]), (2, 20, [5, 11]), (3, 20, [4, 8, 13]), (1, 1, [1]), (3, 2, [1])],
)
def test_previews_are_due_before_half_and_well_before_the_end(count, of, steps):
    previews = Previews(count)
    assert [step for step in range(1, of + 1) if previews.due(step, of)] == steps
