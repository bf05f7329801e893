"""AUTOMATIC1111's door as its Python client meets it: webuiapi, a process, a socket."""

import base64
import io
import json
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import webuiapi
from PIL import Image

import toys
from serving import Server

SECRET = "zebra"  # in every prompt: no log may hold it
LONG = {"steps": 1000, "sampler_name": "Heun"}  # a quarter of a minute, unless it is interrupted
SMALL = {"width": 32, "height": 32, "steps": 4, "cfg_scale": 4.0, "eta": None}


def arguments(volume, *more: str) -> list[str]:
    return ["--model-id", "toy/model", "--root", str(volume), "--device", "cpu", *more]


@pytest.fixture(scope="module")
def server(toy_volume):
    roomy = ("--max-steps", "5000", "--max-cost", "1000", "--timeout", "3600", "--max-queue-seconds", "3600")
    with Server(arguments(toy_volume, *roomy)) as running:
        yield running.wait_until_ready()
        assert SECRET not in running.text
        assert running.process.poll() is None


@pytest.fixture
def client(server, monkeypatch) -> webuiapi.WebUIApi:
    monkeypatch.setenv("NO_PROXY", "*")
    return webuiapi.WebUIApi(port=server.port, sampler="Automatic")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def predicted(server: Server, **parameters: object) -> np.ndarray:
    answer = server.predict({"prompt": SECRET, "parameters": {"num_inference_steps": 4, "guidance_scale": 4.0} | parameters})
    assert answer.status_code == 200, answer.text
    return pixels(Image.open(io.BytesIO(answer.content)))


# ---------------------------------------------------------------- pictures


def test_the_picture_is_that_of_predict(server, client):
    asked = SMALL | {"negative_prompt": "dots", "seed": 7, "sampler_name": "Euler a", "width": 24}
    made = client.txt2img(prompt=SECRET, **asked)
    expected = predicted(server, seed=7, width=24, negative_prompt="dots", scheduler="EulerAncestralDiscreteScheduler")
    assert np.abs(pixels(made.image) - expected).max() <= 1
    assert made.image.info["parameters"] == (
        f"{SECRET}\nNegative prompt: dots\nSteps: 4, Sampler: Euler a, CFG scale: 4.0, Seed: 7, Size: 24x32, Model: model"
    )
    assert made.info["infotexts"] == [made.image.info["parameters"]]
    assert json.loads(made.image.info["generation"])["model"] == "toy/model"
    assert made.parameters["seed"] == 7
    assert (made.info["sampler_name"], made.info["sd_model_name"]) == ("Euler a", "model")


def test_without_a_sampler_and_a_seed_both_are_told(server, client):
    made = client.txt2img(prompt=SECRET, **SMALL)
    assert made.info["sampler_name"] == "Automatic"
    assert np.abs(pixels(made.image) - predicted(server, seed=made.info["seed"])).max() <= 1


def test_a_batch_has_a_seed_for_each_picture(server, client):
    made = client.txt2img(prompt=SECRET, **SMALL | {"seed": 7, "batch_size": 2, "n_iter": 2})
    assert made.info["all_seeds"] == [7, 8, 9, 10]
    assert len(made.images) == 4
    for image, seed in zip(made.images, made.info["all_seeds"], strict=True):
        assert np.abs(pixels(image) - predicted(server, seed=seed)).max() <= 1
        assert f"Seed: {seed}, " in image.info["parameters"]


def test_every_sampler_that_is_listed_paints(client):
    names = client.util_get_sampler_names()
    assert {"Automatic", "DDIM", "DPM++ 2M", "Euler", "Euler a", "UniPC"} <= set(names)
    for name in names:
        made = client.txt2img(prompt=SECRET, **SMALL | {"sampler_name": name})
        assert (made.info["sampler_name"], made.image.size) == (name, (32, 32))


def test_a_refusal_says_why(server, client):
    with pytest.raises(RuntimeError) as refused:
        client.txt2img(prompt=SECRET, enable_hr=True)
    status, text = refused.value.args
    assert status == 400
    assert json.loads(text)["detail"] == "enable_hr must be false, not true"
    assert SECRET not in text
    answer = server.client.post("/sdapi/v1/txt2img", content=b"prompt=a")
    assert (answer.status_code, answer.json()["error"]) == (400, "HTTPException")


def test_files_hold_no_prompt_where_they_must_not(toy_volume, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with Server(arguments(toy_volume, "--embed-prompt", "false")) as server:
        server.wait_until_ready()
        made = webuiapi.WebUIApi(port=server.port, sampler="DDIM").txt2img(prompt=SECRET, **SMALL | {"eta": 0})
    assert made.image.info["parameters"].startswith("Steps: 4, Sampler: DDIM, ")
    assert SECRET not in str(made.image.info)


# ---------------------------------------------------------------- on the way


def progress_of(work: Future, client: webuiapi.WebUIApi, *, after: int = 0, preview: bool = False) -> dict:
    """Once more steps than that are done, and a preview is there where one is wanted."""
    while (progress := client.get_progress())["state"]["sampling_step"] <= after or (preview and not progress["current_image"]):
        assert not work.done()
    return progress


def test_progress_is_told_and_an_interrupt_ends_the_work(server, client):
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(client.txt2img, prompt=SECRET, **SMALL | LONG | {"steps": 900})
        progress = progress_of(work, client, preview=True)
        assert 0 < progress["progress"] < 1
        assert progress["eta_relative"] > 0
        assert (progress["state"]["job_count"], progress["state"]["sampling_steps"]) == (1, 1799)
        preview = Image.open(io.BytesIO(base64.b64decode(progress["current_image"])))
        assert preview.format == "PNG"
        plain = server.client.get("/sdapi/v1/progress", params={"skip_current_image": True}).json()
        assert plain["current_image"] is None
        assert client.interrupt() == {}
        error = work.exception()
    assert isinstance(error, RuntimeError)
    assert error.args[0] == 499
    assert set(json.loads(error.args[1])) == {"error", "detail", "body", "errors"}
    assert client.get_progress()["state"]["job_count"] == 0
    assert server.wait_for(path="/sdapi/v1/txt2img", status=499)


def test_strangers_neither_see_nor_stop_anything(server, client):
    stranger = {"x-forwarded-for": "192.0.2.1"}
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(client.txt2img, prompt=SECRET, **SMALL | LONG)
        begun = progress_of(work, client)["state"]["sampling_step"]
        assert server.client.get("/sdapi/v1/progress", headers=stranger).json()["state"]["job_count"] == 0
        assert server.client.post("/sdapi/v1/interrupt", headers=stranger).status_code == 200
        progress_of(work, client, after=begun)
        assert client.interrupt() == {}
        assert isinstance(work.exception(), RuntimeError)


def test_with_nothing_to_do_there_is_no_progress_and_nothing_to_interrupt(client):
    progress = client.get_progress()
    assert (progress["progress"], progress["state"]["job_count"], progress["current_image"]) == (0, 0, None)
    assert client.interrupt() == {}


# ---------------------------------------------------------------- looked up


def test_the_model_is_the_only_one_there_is(client):
    assert client.util_get_model_names() == ["model"]
    assert client.get_sd_models()[0]["filename"] == f"toy/model@{toys.COMMIT}"
    assert client.util_get_current_model() == "model"
    assert client.util_get_scheduler_names() == ["automatic"]


def test_the_model_can_be_set_to_itself(client):
    assert not client.set_options({"sd_model_checkpoint": "model"})
    assert not client.set_options(client.get_options())
    refusal = client.set_options({"sd_model_checkpoint": "other"})
    assert refusal["detail"] == 'sd_model_checkpoint must be "model", not "other"'
    made = client.txt2img(prompt=SECRET, **SMALL | {"override_settings": {"sd_model_checkpoint": "model"}})
    assert made.image.size == (32, 32)
