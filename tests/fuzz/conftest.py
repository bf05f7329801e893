"""One server with small limits, so that whatever it accepts is small."""

from collections.abc import Iterator

import pytest

from fuzz.hostile import SECRET
from serving import Server

SMALL = ["--max-steps", "20", "--default-steps", "2", "--max-cost", "4", "--max-rows", "8", "--max-body-bytes", "20000"]
GOOD = {"prompt": SECRET, "parameters": {"num_inference_steps": 2, "seed": 5}}


@pytest.fixture(scope="session")
def small_server(toy_volume) -> Iterator[Server]:
    with Server(["--model-id", "toy/model", "--root", str(toy_volume), "--device", "cpu", *SMALL]) as running:
        yield running.wait_until_ready()


@pytest.fixture(scope="session")
def reference(small_server) -> bytes:
    """The picture that a good request gets, before there were others."""
    return small_server.predict(GOOD).raise_for_status().content


@pytest.fixture
def server(small_server, reference) -> Iterator[Server]:
    """After the test it must make the same picture as before; its log must hold no prompt and no fault."""
    yield small_server
    assert small_server.predict(GOOD).content == reference
    assert SECRET not in small_server.text
    assert '"level": "error"' not in small_server.text
    assert small_server.process.poll() is None
