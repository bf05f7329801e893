"""One request over each door, by the door's own client where there is one. What is asked has our names, flat."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import httpx
import openai
from cloudevents.conversion import to_binary
from cloudevents.http import CloudEvent
from huggingface_hub import InferenceClient
from kserve import InferenceGRPCClient, InferInput, InferRequest

from serving import Server

Own = dict[str, Any]


class Doors:
    """Every method takes a request and returns the bytes of its picture, or raises."""

    def __init__(self, server: Server) -> None:
        self.server = server
        http = httpx.Client(trust_env=False, timeout=300, limits=httpx.Limits(max_connections=None))
        self.openai_client = openai.OpenAI(base_url=server.url + "/openai/v1", api_key="none", max_retries=0, http_client=http)
        self.hub = InferenceClient(model=server.url + "/", token="none")

    @property
    def all(self) -> list[Callable[[Own], bytes]]:
        return [
            *(self.predict, self.instances, self.openai, self.openai_stream, self.v2),
            *(self.grpc, self.huggingface, self.generate, self.a1111, self.event),
        ]

    def predict(self, own: Own) -> bytes:
        body = {"prompt": own["prompt"], "parameters": _parameters(own)}
        return self.server.predict(body).raise_for_status().content

    def instances(self, own: Own) -> bytes:
        answer = self.server.predict({"instances": [{"prompt": own["prompt"]}], "parameters": _parameters(own)})
        return base64.b64decode(answer.raise_for_status().json()["predictions"][0]["image"]["b64"])

    def openai(self, own: Own) -> bytes:
        made = self.openai_client.images.generate(**_openai(own))
        return base64.b64decode(made.data[0].b64_json)

    def openai_stream(self, own: Own) -> bytes:
        told = list(self.openai_client.images.generate(**_openai(own), stream=True, partial_images=2))
        return base64.b64decode(told[-1].b64_json)

    def v2(self, own: Own) -> bytes:
        inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [own["prompt"]]}]
        body = {"inputs": inputs, "parameters": _parameters(own), "outputs": [{"name": "image"}]}
        answer = self.server.client.post(f"/v2/models/{self.server.name}/infer", json=body).raise_for_status()
        return base64.b64decode(answer.json()["outputs"][0]["data"][0])

    def grpc(self, own: Own) -> bytes:
        """Over a connection of its own; numbers with a point as texts, since gRPC's parameters have none."""
        prompt = InferInput("prompt", [1], "BYTES", [own["prompt"]])
        parameters = {name: str(value) if isinstance(value, float) else value for name, value in _parameters(own).items()}
        request = InferRequest(self.server.name, [prompt], parameters=parameters)

        async def ask() -> bytes:
            async with InferenceGRPCClient(f"127.0.0.1:{self.server.grpc_port}", retries=0) as client:
                answer = await client.infer(request)
            return bytes(next(each for each in answer.outputs if each.name == "image").as_numpy()[0])

        return asyncio.run(ask())

    def event(self, own: Own) -> bytes:
        attributes = {"type": "ask", "source": "tests", "datacontenttype": "application/json"}
        asked = CloudEvent(attributes, {"prompt": own["prompt"], "parameters": _parameters(own)})
        headers, body = to_binary(asked)
        answer = self.server.client.post(f"/v1/models/{self.server.name}:predict", content=body, headers=headers)
        assert answer.raise_for_status().headers["ce-source"] == f"io.kserve.inference.{self.server.name}"
        return answer.content

    def huggingface(self, own: Own) -> bytes:
        file = io.BytesIO()
        self.hub.text_to_image(own["prompt"], **_parameters(own)).save(file, "PNG")
        return file.getvalue()

    def generate(self, own: Own) -> bytes:
        return self.server.client.post("/generate", json=own).raise_for_status().content

    def a1111(self, own: Own) -> bytes:
        theirs = {"num_inference_steps": "steps", "guidance_scale": "cfg_scale", "scheduler": "sampler_name"}
        body = {theirs.get(name, name): value for name, value in own.items()}
        answer = self.server.client.post("/sdapi/v1/txt2img", json=body).raise_for_status()
        return base64.b64decode(answer.json()["images"][0])


def _parameters(own: Own) -> Own:
    return {name: value for name, value in own.items() if name != "prompt"}


def _openai(own: Own) -> Own:
    beside = {name: value for name, value in own.items() if name not in ("prompt", "width", "height")}
    return {"prompt": own["prompt"], "size": f"{own['width']}x{own['height']}", "extra_body": beside}
