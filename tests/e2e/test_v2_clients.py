"""The Open Inference Protocol over both of its doors, by KServe's own clients."""

import asyncio
import base64
import io
import json
import struct

import grpc
import httpx
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.protocol.infer_type import InferResponse, RequestedOutput
from PIL import Image

from serving import Server

SECRET = "zebra"  # in every prompt: no log may hold it
ROOMY = ["--max-steps", "5000", "--max-cost", "1000"]
LONG = {"num_inference_steps": 1000, "scheduler": "HeunDiscreteScheduler"}  # a quarter of a minute, unless it is cancelled
OWN = {"seed": 7, "num_inference_steps": 3, "guidance_scale": 4.5, "negative_prompt": "dots", "width": 24}


def arguments(volume, *more: str) -> list[str]:
    return ["--model-id", "toy/model", "--root", str(volume), "--device", "cpu", *ROOMY, *more]


@pytest.fixture(scope="module")
def server(toy_volume):
    with Server(arguments(toy_volume)) as running:
        yield running.wait_until_ready()
        assert SECRET not in running.text
        assert running.process.poll() is None


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


def same(one: bytes, other: bytes) -> bool:
    return np.abs(pixels(one) - pixels(other)).max() <= 1


def predicted(server: Server, prompt: str = SECRET, **own: object) -> bytes:
    answer = server.predict({"prompt": prompt, "parameters": OWN | own})
    assert answer.status_code == 200, answer.text
    return answer.content


def tensor(name: str, values: list, *, raw: bool = True) -> InferInput:
    kinds = {int: ("INT64", np.int64), float: ("FP32", np.float32), str: ("BYTES", np.object_)}
    datatype, kind = kinds[type(values[0])]
    made = InferInput(name, [len(values)], datatype)
    made.set_data_from_numpy(np.array(values, kind), binary_data=raw)
    return made


def asked(*inputs: InferInput, prompts: list[str] | None = None, raw: bool = True, outputs=(), **own: object) -> InferRequest:
    """Prompts and `inputs`; `own` as parameters of the request."""
    wanted = [RequestedOutput(name) for name in outputs]
    return InferRequest(
        "model", [tensor("prompt", prompts or [SECRET], raw=raw), *inputs], "id-1", parameters=own, request_outputs=wanted
    )


def as_inputs(own: dict[str, object], *, raw: bool = True) -> list[InferInput]:
    return [tensor(name, [value], raw=raw) for name, value in own.items()]


async def over_rest(server: Server, request: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=300)) as client:
        return await client.infer(server.url, request, "model", headers=headers)


async def over_grpc(server: Server, request: InferRequest, headers=(), patience: float = 300) -> InferResponse:
    async with InferenceGRPCClient(f"127.0.0.1:{server.grpc_port}", retries=0) as client:
        return await client.infer(request, timeout=patience, headers=headers)


def outputs(response: InferResponse) -> dict[str, list]:
    return {output.name: list(output.as_numpy()) for output in response.outputs}


async def refusal(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        await call
    return error.value.code(), error.value.details()


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("raw", [True, False])
def test_rest_makes_the_picture_that_predict_makes(server, raw):
    found = outputs(asyncio.run(over_rest(server, asked(*as_inputs(OWN, raw=raw), raw=raw))))
    assert same(base64.b64decode(found["image"][0]), predicted(server))
    assert (found["seed"], found["dropped_tokens"]) == ([7], [0])


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_makes_the_picture_that_predict_makes(server, raw):
    response = asyncio.run(over_grpc(server, asked(*as_inputs(OWN, raw=raw), raw=raw)))
    assert same(outputs(response)["image"][0], predicted(server))
    assert (response.model_name, response.id) == ("model", "id-1")


def test_parameters_of_the_request_are_as_good_as_inputs(server):
    plain = predicted(server)
    found = outputs(asyncio.run(over_rest(server, asked(**OWN))))
    assert same(base64.b64decode(found["image"][0]), plain)
    found = outputs(asyncio.run(over_grpc(server, asked(**OWN | {"guidance_scale": "4.5"}))))  # no float passes here
    assert same(found["image"][0], plain)


def test_several_prompts_each_with_a_seed_or_pictures_of_its_own(server):
    request = asked(tensor("seed", [1, 5]), prompts=["a zebra", "b zebra"], **OWN | {"seed": 9, "guidance_scale": "4.5"})
    request.inputs.append(tensor("num_images_per_prompt", [2, 1]))
    found = outputs(asyncio.run(over_grpc(server, request)))
    assert found["seed"] == [1, 2, 5]
    expected = [
        predicted(server, "a zebra", seed=1),
        predicted(server, "a zebra", seed=2),
        predicted(server, "b zebra", seed=5),
    ]
    for file, plain in zip(found["image"], expected, strict=True):
        assert same(file, plain)
    found = outputs(asyncio.run(over_rest(server, request)))
    for text, plain in zip(found["image"], expected, strict=True):
        assert same(base64.b64decode(text), plain)


def test_a_picture_over_rest_as_raw_bytes(server):
    body = {
        "inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": [[SECRET]]}],
        "parameters": OWN | {"binary_data_output": True, "output_format": "webp"},
    }
    answer = server.client.post("/v2/models/model/infer", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    length = int(answer.headers["inference-header-content-length"])
    image, seed, _ = json.loads(answer.content[:length])["outputs"]
    raw = answer.content[length:]
    file = raw[4 : image["parameters"]["binary_data_size"]]
    assert struct.unpack_from("<I", raw)[0] == len(file)
    assert Image.open(io.BytesIO(file)).get_format_mimetype() == "image/webp"
    assert same(file, predicted(server, output_format="webp"))
    assert seed["parameters"]["binary_data_size"] == 8


def test_kserve_s_client_reads_raw_outputs_that_are_no_pictures(server):
    """Over REST it takes every raw BYTES for UTF-8, which no picture is."""
    request = asked(outputs=["seed"], **OWN | {"binary_data_output": True})
    response = asyncio.run(over_rest(server, request))
    assert [(output.name, output.data) for output in response.outputs] == [("seed", [7])]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"width": 33}, "width must be a multiple of 2 from 8 to 128, not 33"),
        ({"seed": "x"}, 'seed must be a whole number from 0 to 9223372036854775807, not "x"'),
        ({"steps": 3}, 'parameters has no field "steps"; allowed: binary_data_output, '),
        ({"scheduler": "PNDMScheduler"}, "num_inference_steps must suit PNDMScheduler, which cannot make 3 steps"),
    ],
)
def test_bad_requests_are_named_over_both_doors(server, more, text):
    request = asked(**OWN | {"guidance_scale": "4.5"} | more)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        asyncio.run(over_rest(server, request))
    assert refused.value.response.status_code == 400
    [(key, message)] = refused.value.response.json().items()
    assert key == "error" and message.startswith(text)
    code, details = asyncio.run(refusal(over_grpc(server, request)))
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, message)


@pytest.mark.parametrize("length", ["x", "-1", "1000000", "9" * 5000, "²"])
def test_a_header_length_that_lies_is_a_bad_request(server, length):
    headers = {"inference-header-content-length": length.encode()}
    answer = server.client.post("/v2/models/model/infer", content=b"{}", headers=headers)
    assert answer.status_code == 400
    assert "inference-header-content-length" in answer.json()["error"]


def test_an_unknown_model_is_not_found_over_both_doors(server):
    request = asked()
    request.model_name = "other"
    code, details = asyncio.run(refusal(over_grpc(server, request)))
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "no model of this name here; there is model")
    answer = server.client.post("/v2/models/other/infer", json={})
    assert (answer.status_code, answer.json()["error"]) == (404, details)


def test_models_cannot_be_unloaded_over_grpc(server):
    async def unload():
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = GRPCInferenceServiceStub(channel)
            return await refusal(stub.RepositoryModelUnload(messages.RepositoryModelUnloadRequest(model_name="model")))

    assert asyncio.run(unload())[0] == grpc.StatusCode.PERMISSION_DENIED
    assert server.ready().status_code == 200


# ---------------------------------------------------------------- what is told


def test_both_doors_know_the_model_and_its_tensors(server):
    async def told():
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            return await GRPCInferenceServiceStub(channel).ModelMetadata(messages.ModelMetadataRequest(name="model"))

    rest, over_grpc = server.client.get("/v2/models/model").json(), asyncio.run(told())
    assert rest["platform"] == over_grpc.platform == "diffusers_StableDiffusionPipeline"
    assert {"prompt", "seed", "scheduler", "guidance_scale"} < {each["name"] for each in rest["inputs"]}
    for name in ("inputs", "outputs"):
        tensors = [
            {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in getattr(over_grpc, name)
        ]
        assert rest[name] == tensors


def test_kserve_s_clients_find_it_ready(server):
    async def scenario():
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            rest = await client.is_server_ready(server.url), await client.is_model_ready(server.url, "model")
        async with InferenceGRPCClient(f"127.0.0.1:{server.grpc_port}") as client:
            over_grpc = await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready("model")
        return *rest, *over_grpc

    assert asyncio.run(scenario()) == (True,) * 5


def test_a_call_over_grpc_is_one_line_of_the_log(server):
    asyncio.run(over_grpc(server, asked(num_inference_steps=3), headers=(("x-request-id", "mine-2"),)))
    line = server.wait_for(request_id="mine-2")
    assert (line["message"], line["method"], line["path"], line["status"]) == ("request", "gRPC", "ModelInfer", 200)
    assert server.client.get("/v1/requests/mine-2").json()["state"] == "done"


# ---------------------------------------------------------------- going away


@pytest.mark.parametrize("door", ["rest", "grpc", "grpc deadline"])
def test_a_caller_who_goes_away_stops_the_work(server, door):
    request_id = "gone-" + door.replace(" ", "-")

    async def scenario():
        if door == "rest":
            call = over_rest(server, asked(**LONG), headers={"x-request-id": request_id})
        else:
            patience = 2 if door == "grpc deadline" else 300
            call = over_grpc(server, asked(**LONG), (("x-request-id", request_id),), patience)
        work = asyncio.create_task(call)
        await asyncio.to_thread(server.wait_until_running, request_id)
        if door != "grpc deadline":
            work.cancel()
        [outcome] = await asyncio.gather(work, return_exceptions=True)
        return outcome

    outcome = asyncio.run(scenario())
    if door == "grpc deadline":
        assert outcome.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        assert isinstance(outcome, asyncio.CancelledError)
    assert server.wait_for(message="request", request_id=request_id)["status"] == 499
    over = server.wait_until_over(request_id)
    assert over["state"] == "cancelled"
    assert over["step"] < over["of"]


def test_somebody_else_can_cancel_a_call_over_grpc(server):
    async def scenario():
        work = asyncio.create_task(refusal(over_grpc(server, asked(**LONG), (("x-request-id", "theirs"),))))
        await asyncio.to_thread(server.wait_until_running, "theirs")
        await asyncio.to_thread(server.client.delete, "/v1/requests/theirs")
        return await work

    assert asyncio.run(scenario())[0] == grpc.StatusCode.CANCELLED


def test_a_replica_that_comes_and_goes_says_so_over_grpc(toy_volume):
    async def scenario(server: Server):
        async with InferenceGRPCClient(f"127.0.0.1:{server.grpc_port}", retries=0) as client:
            early = await refusal(client.infer(asked())), await client.is_model_ready("model"), await client.is_server_live()
            await asyncio.to_thread(server.wait_until_ready)
            headers = (("x-request-id", "accepted"),)
            work = asyncio.create_task(client.infer(asked(seed=3, num_inference_steps=600), headers=headers, timeout=300))
            await asyncio.to_thread(server.wait_until_running, "accepted")
            server.terminate()
            await asyncio.to_thread(server.wait_for, message="draining")
            late = await refusal(client.infer(asked())), await client.is_model_ready("model"), await client.is_server_live()
            return early, late, outputs(await work)["seed"]

    with Server(arguments(toy_volume, "--grace-period", "100")) as server:
        server.wait_until_open()
        early, late, seeds = asyncio.run(scenario(server))
        for ((code, details), ready, live), reason in ((early, ""), (late, "draining")):
            assert (code, ready, live) == (grpc.StatusCode.UNAVAILABLE, False, True)
            assert details.startswith(f"model model is not ready: {reason}")
        assert seeds == [3]
        assert server.process.wait(60) == 0
        assert SECRET not in server.text
