"""The predictor as an operator starts it and a caller meets it: a process, a socket, curl."""

import base64
import io
import json
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import toys
from predictor.images import provenance
from serving import START, Server

SECRET = "zebra"  # in every prompt: no log may hold it
LONG = {
    "prompt": SECRET,
    "parameters": {"num_inference_steps": 1000, "scheduler": "HeunDiscreteScheduler"},
}  # tens of seconds, unless it is cancelled
ROOMY = ["--max-steps", "5000", "--max-cost", "1000"]


def arguments(volume, *more: str) -> list[str]:
    return ["--model-id", "toy/model", "--root", str(volume), "--device", "cpu", *more]


@pytest.fixture(scope="module")
def server(toy_volume):
    with Server(arguments(toy_volume, *ROOMY, "--max-body-bytes", "20000")) as running:
        yield running.wait_until_ready()
        assert SECRET not in running.text
        assert running.process.poll() is None


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


def few(prompt: str = SECRET, **parameters: object) -> dict:
    return {"prompt": prompt, "parameters": {"num_inference_steps": 3} | parameters}


# ---------------------------------------------------------------- pictures


def test_a_prompt_gets_a_picture_that_tells_its_seed(server):
    answer = server.predict(few(seed=424242))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "424242"
    assert [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")] == [
        *("queue", "text", "denoise", "decode", "encode")
    ]
    assert pixels(answer.content).shape == (32, 32, 3)


def test_without_a_seed_the_one_told_gives_the_same_picture_again(server):
    first = server.predict(few())
    again = server.predict(few(seed=int(first.headers["x-seed"])))
    assert np.abs(pixels(first.content) - pixels(again.content)).max() <= 1
    assert server.predict(few()).headers["x-seed"] != first.headers["x-seed"]


def test_the_file_holds_what_it_takes_to_make_it_again(server):
    first = server.predict(few(width=24, guidance_scale=3.0, scheduler="EulerDiscreteScheduler", negative_prompt="dots"))
    made = provenance(first.content)
    assert (made.pop("model"), made.pop("commit"), made.pop("pipeline")) == (
        "toy/model",
        toys.COMMIT,
        "StableDiffusionPipeline",
    )
    again = server.predict({"prompt": made.pop("prompt"), "parameters": made})
    assert again.status_code == 200, again.text
    assert np.abs(pixels(first.content) - pixels(again.content)).max() <= 1


@pytest.mark.parametrize(
    "header", ["", "application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded", "text/plain"]
)
def test_curl_with_any_content_type(server, header, tmp_path):
    file = tmp_path / "picture.png"
    url = f"http://127.0.0.1:{server.port}/v1/models/model:predict"
    options = ["-H", f"Content-Type: {header}" if header else "Content-Type:"]
    command = [
        "curl",
        "--fail-with-body",
        "--silent",
        "--noproxy",
        "*",
        url,
        *options,
        "-d",
        json.dumps(few()),
        "-o",
        str(file),
    ]
    subprocess.run(command, check=True)
    assert pixels(file.read_bytes()).shape == (32, 32, 3)


def test_instances_come_back_in_order_with_shared_and_own_parameters(server):
    body = {
        "instances": [few("a zebra", seed=1), few("b zebra", seed=2, width=16), few("c zebra", num_images_per_prompt=2)],
        "parameters": {"seed": 9, "guidance_scale": 2.0},
    }
    predictions = server.predict(body).json()["predictions"]
    assert [prediction["seed"] for prediction in predictions] == [1, 2, 9]
    assert [prediction["guidance_scale"] for prediction in predictions] == [2.0] * 3
    images = [*(each["image"] for each in predictions[:2]), *predictions[2]["images"]]
    assert [image["seed"] for image in images] == [1, 2, 9, 10]
    shapes = [pixels(base64.b64decode(image["b64"])).shape for image in images]
    assert shapes == [(32, 32, 3), (32, 16, 3), (32, 32, 3), (32, 32, 3)]


def test_accept_json_gets_json_for_a_prompt(server):
    answer = server.predict(few(seed=5), headers={"accept": "application/json"})
    [prediction] = answer.json()["predictions"]
    assert (prediction["seed"], prediction["image"]["format"]) == (5, "PNG")


@pytest.mark.parametrize(("output_format", "media_type"), [("jpeg", "image/jpeg"), ("webp", "image/webp")])
def test_other_formats(server, output_format, media_type):
    answer = server.predict(few(output_format=output_format))
    assert answer.headers["content-type"] == media_type
    assert Image.open(io.BytesIO(answer.content)).get_format_mimetype() == media_type


def test_a_prompt_that_is_too_long_to_read_is_told(server):
    assert server.predict(few(SECRET * 4)).headers["x-prompt-truncated"] == "6"  # 20 letters, 14 fit
    [prediction] = server.predict({"instances": [few(SECRET * 4)]}).json()["predictions"]
    assert (prediction["truncated"], prediction["dropped_tokens"]) == (True, 6)
    assert "x-prompt-truncated" not in server.predict(few()).headers


def test_32_mixed_requests_at_once_are_each_as_if_alone(server):
    samplers = ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"]
    requests = [
        few(
            f"{SECRET} {i}",
            seed=i,
            num_inference_steps=4 + i % 5,
            guidance_scale=(1.0, 4.5, 7.5)[i % 3],
            scheduler=samplers[i % 4],
            width=(32, 24)[i % 5 == 0],
        )
        for i in range(32)
    ]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(server.predict, requests))
    assert [answer.status_code for answer in together] == [200] * 32
    for request, answer in zip(requests, together, strict=True):
        alone = server.predict(request)
        assert np.abs(pixels(answer.content) - pixels(alone.content)).max() <= 1


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (few(width=33), "parameters.width must be a multiple of 2 from 8 to 128, not 33"),
        (few(num_inference_steps=True), "num_inference_steps must be a whole number from 1 to 5000, not true"),
        ({"prompt": SECRET, "seed": 3}, 'body has no field "seed"'),
        ({"instances": [few(), few(seed=-1)]}, "instances[1].parameters.seed must be a whole number from 0 to"),
        (few(width=128, height=128), "parameters.width x parameters.height must be at most 4096 pixels"),
        (few(num_images_per_prompt=4, num_inference_steps=5000, width=64, height=64), "at most 1000 times a default picture"),
        (few(scheduler="PNDMScheduler"), "num_inference_steps must suit PNDMScheduler, which cannot make 3 steps"),
        ([], "body must be a JSON object"),
    ],
)
def test_bad_requests_name_field_value_and_what_is_allowed(server, body, text):
    answer = server.predict(body)
    assert answer.status_code == 400
    assert text in answer.json()["error"]
    assert SECRET not in answer.text


def test_an_unknown_model_is_404(server):
    for answer in (server.client.post("/v1/models/other:predict", json=few()), server.client.get("/v1/models/other")):
        assert answer.status_code == 404
        assert "there is model" in answer.json()["error"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_large_body_is_413_however_it_comes(server, streamed):
    body = json.dumps({"prompt": "x" * 30000}).encode()
    content = iter([body[:15000], body[15000:]]) if streamed else body
    answer = server.client.post("/v1/models/model:predict", content=content)
    assert answer.status_code == 413
    assert "at most 20000 bytes" in answer.json()["error"]


def test_models_cannot_be_unloaded_over_http(server):
    answer = server.client.post("/v2/repository/models/model/unload")
    assert answer.status_code == 403
    assert server.ready().status_code == 200


def test_kserve_routes_know_the_model(server):
    assert server.client.get("/v1/models").json() == {"models": ["model"]}
    assert server.client.get("/v2/models/model/ready").json()["ready"] is True
    assert server.client.get("/metrics").status_code == 200
    assert server.client.get("/livez").json() == {"alive": True}


def test_every_answer_carries_a_request_id(server):
    assert server.predict(few(), headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(server.predict([], headers={"x-request-id": "not well formed"}).headers["x-request-id"]) == 32
    line = server.wait_for(request_id="mine-1")
    assert (line["message"], line["status"], line["path"]) == ("request", 200, "/v1/models/{name}:predict")


def test_a_caller_who_goes_away_stops_the_work(server):
    body = json.dumps(LONG).encode()
    head = f"POST /v1/models/model:predict HTTP/1.1\r\nHost: x\r\nX-Request-Id: gone\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as caller:
        caller.sendall(head.encode() + body)
        server.wait_until_running("gone")
    assert server.wait_for(request_id="gone")["status"] == 499
    after = server.predict(few())
    assert after.status_code == 200


# ---------------------------------------------------------------- full, late, leaving


def test_a_full_queue_is_429_and_truncation_can_be_refused(toy_volume):
    more = ("--max-queue-seconds", "1", "--refuse-truncation", "true", "--grace-period", "0.5")
    with Server(arguments(toy_volume, *ROOMY, *more)) as small, ThreadPoolExecutor(1) as pool:
        small.wait_until_ready()
        answer = small.predict(few(SECRET * 4))
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            "prompt is 6 tokens longer than this model's text encoder reads",
        )
        work = pool.submit(small.predict, LONG, headers={"x-request-id": "long"})
        small.wait_until_running("long")
        answer = small.predict(LONG)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "s of work are accepted" in answer.json()["error"]
        small.terminate()
        assert work.result().status_code == 503
        assert SECRET not in small.text


def test_a_deadline_is_504_when_it_passes_and_400_when_it_must(toy_volume):
    with Server(arguments(toy_volume, *ROOMY, "--timeout", "2", "--max-queue-seconds", "2")) as hasty:
        hasty.wait_until_ready()
        answer = hasty.predict(LONG)
        assert answer.status_code == 400
        assert "even alone, and no request may take more than 2 s" in answer.json()["error"]
        # Nobody has seen yet that Heun's sampler takes two forwards a step: 1.4 s are expected of what takes twice that.
        forward = hasty.wait_for(message="ready")["forward_ms"]["2"] / 1000
        answer = hasty.predict(few(num_inference_steps=int(1.4 / forward), scheduler="HeunDiscreteScheduler"))
        assert answer.status_code == 504
        assert "not finished 2 s after it came (half done)" in answer.json()["error"]
        assert hasty.predict(few()).status_code == 200
        assert SECRET not in hasty.text


def test_a_grpc_port_that_is_taken_ends_the_process_and_says_so(toy_volume):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        with Server(arguments(toy_volume), grpc_port=taken.getsockname()[1]) as refused:
            line = refused.wait_for(level="critical")
            assert f"{refused.grpc_port}" in line["message"]
            assert refused.process.wait(START) == line["exit_code"] != 0


def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(toy_volume):
    with Server(arguments(toy_volume, *ROOMY, "--grace-period", "100")) as server, ThreadPoolExecutor(4) as pool:
        server.wait_until_ready()
        work = [pool.submit(server.predict, few(num_inference_steps=400, seed=i)) for i in range(3)]
        assert server.predict(few()).status_code == 200  # by now they have been accepted
        server.terminate()
        server.wait_for(message="draining")
        for refused in (server.predict(few()), server.ready()):
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert "draining" in refused.json()["error"]
        assert [each.result().status_code for each in work] == [200, 200, 200]
        assert server.process.wait(60) == 0


def test_what_does_not_fit_the_grace_period_is_told(toy_volume):
    with Server(arguments(toy_volume, *ROOMY, "--grace-period", "0.5")) as server, ThreadPoolExecutor(1) as pool:
        server.wait_until_ready()
        work = pool.submit(server.predict, LONG)
        assert server.predict(few()).status_code == 200
        server.terminate()
        answer = work.result()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "shut down before the picture was finished" in answer.json()["error"]
        assert server.process.wait(60) == 0
        assert server.wait_for(message="grace period over")["unfinished"] == 1


FAULTY = """
import functools, os, pathlib, sys, diffusers, torch
from predictor.__main__ import main
flag, forward = pathlib.Path(sys.argv.pop(1)), diffusers.UNet2DConditionModel.forward
@functools.wraps(forward)
def faulty(*args, **kwargs):
    if flag.exists():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    return forward(*args, **kwargs)
diffusers.UNet2DConditionModel.forward = faulty
os._exit(main())
"""


def test_a_failed_device_ends_the_process_and_everybody_is_told(toy_volume, tmp_path):
    flag = tmp_path / "fault"
    server = Server(arguments(toy_volume, *ROOMY), program=("-c", FAULTY, str(flag)))
    with server, ThreadPoolExecutor(3) as pool:
        server.wait_until_ready()
        work = [pool.submit(server.predict, LONG) for _ in range(3)]
        assert server.predict(few()).status_code == 200
        flag.touch()
        answers = [each.result() for each in work]
        assert server.process.wait(60) == 24
        for answer in answers:
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert "the device of this replica has failed" in answer.json()["error"]
        assert server.wait_for(message="the device has failed")["error"] == "AcceleratorError"
        assert SECRET not in server.text


# ---------------------------------------------------------------- starting


def test_the_port_is_open_before_the_model_is_loaded(toy_volume):
    with Server(arguments(toy_volume), environ={"INFERENCE_SERVICE_NAME": "my-service"}, name="my-service") as server:
        server.wait_until_open()
        early = [server.ready(), server.predict(few()), server.client.get("/livez")]
        server.wait_until_ready()
        assert server.ready().json() == {"name": "my-service", "ready": True}
        assert server.client.head("/v1/models/my-service").status_code == 200
        assert server.wait_for(message="ready")["shares_forwards"] is True
        for answer in early[:2]:
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"].startswith("model my-service is not ready: ")
        assert early[2].status_code == 200  # loading is no reason to be restarted
        server.terminate()
        assert server.process.wait(60) == 0


@pytest.mark.parametrize("phase", ["looking at the volume", "moving the weights to cpu", "making warm-up pictures"])
def test_sigterm_while_loading_is_obeyed(toy_volume, phase):
    with Server(arguments(toy_volume)) as server:
        server.wait_for(message=phase)
        server.terminate()
        assert server.process.wait(60) == 0


def test_sigterm_while_importing_is_obeyed(toy_volume):
    """As the first process of a container it would be ignored, were there no handler."""
    code = (
        "import os, signal, sys, builtins\n"
        "from predictor import __main__\n"
        "plain = builtins.__import__\n"
        "def spy(name, *rest):\n"
        "    if name == 'kserve': os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return plain(name, *rest)\n"
        "builtins.__import__ = spy\n"
        "__main__.main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments(toy_volume)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("spoil", "code", "text"),
    [
        (lambda path: shutil.rmtree(path.parents[2]), 20, "toy/model is not on the volume"),
        (lambda path: (path / "unet/config.json").unlink(), 21, "lacks unet/config.json"),
    ],
)
def test_a_model_that_cannot_be_served_ends_the_process(toy_volume, tmp_path, spoil, code, text):
    volume = shutil.copytree(toy_volume, tmp_path / "volume")
    spoil(volume / "toy/model/snapshots" / toys.COMMIT)
    with Server(arguments(volume)) as server:
        assert server.process.wait(120) == code
        last = server.wait_for(level="critical")
    assert text in last["message"]
    assert last["exit_code"] == code


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--model-id", "a"], "--model-id must be org/name, not 'a'"),
        (["--model-id", "a/b", "--no-such-flag"], "unknown argument --no-such-flag"),
        (["--model-id", "a/b", "--workers", "2"], "--workers must be 1, not 2"),
    ],
)
def test_usage_errors_are_one_line_and_code_2(argv, text):
    with Server(argv) as server:
        assert server.process.wait(120) == 2
    assert text in server.text


def test_a_path_that_nobody_serves_is_404(server):
    assert server.client.get("/nothing-here").status_code == 404
