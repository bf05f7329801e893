"""Signing as an operator sets it up and as a reader of C2PA sees it: files that are mounted, every door, a process."""

import base64
import io
import json

import pytest
from PIL import Image

import certificates
import toys
from doors import Doors
from predictor.images import provenance
from serving import Server

SECRET = "zebra"  # in every prompt: no log may hold it
OWN = {"prompt": SECRET, "num_inference_steps": 3, "width": 32, "height": 24, "seed": 7}


def arguments(volume, mounted: certificates.Mounted) -> list[str]:
    return ["--model-id", "toy/model", "--root", str(volume), "--device", "cpu", *mounted.arguments]


@pytest.fixture(scope="module")
def mounted(tmp_path_factory) -> certificates.Mounted:
    return certificates.mount(tmp_path_factory.mktemp("mounted"))


@pytest.fixture(scope="module")
def server(toy_volume, mounted):
    with Server(arguments(toy_volume, mounted)) as running:
        yield running.wait_until_ready()
        assert SECRET not in running.text
        assert '"level": "error"' not in running.text
        assert running.process.poll() is None


@pytest.fixture(scope="module")
def doors(server) -> Doors:
    return Doors(server)


@pytest.mark.parametrize("door", ["predict", "instances", "openai", "openai_stream", "v2", "generate", "a1111"])
def test_pictures_are_signed_at_every_door(door, doors, mounted):
    data = getattr(doors, door)(OWN)
    found = certificates.read(data, "image/png", mounted.authority)
    assert (found.state, found.failures) == ("Trusted", set())
    [created] = found.actions
    assert created["parameters"] == {"model": "toy/model", "commit": toys.COMMIT}
    assert (provenance(data)["prompt"], provenance(data)["seed"]) == (SECRET, 7)
    assert SECRET not in json.dumps(found.manifest)


def test_pictures_are_signed_at_hugging_faces_door(server, mounted):
    """Its client hands out pictures and not files."""
    body = {"inputs": SECRET, "parameters": {"num_inference_steps": 3}}
    answer = server.client.post("/", json=body, headers={"accept": "image/webp"}).raise_for_status()
    assert answer.headers["content-type"] == "image/webp"
    assert certificates.read(answer.content, "image/webp", mounted.authority).state == "Trusted"


def test_the_text_that_a1111_wants_inside_is_signed_too(doors, mounted):
    data = doors.a1111(OWN)
    with Image.open(io.BytesIO(data)) as image:
        told = image.info["parameters"]
    assert told.startswith(f"{SECRET}\nSteps: 3, ")
    assert data.count(b"Seed: 7") == 1
    assert certificates.read(data.replace(b"Seed: 7", b"Seed: 8"), "image/png", mounted.authority).state == "Invalid"


def test_previews_are_not_signed(doors):
    made = doors.openai_client.images.generate(
        prompt=SECRET, stream=True, partial_images=1, extra_body={"num_inference_steps": 20, "seed": 7}
    )
    preview, picture = (base64.b64decode(event.b64_json) for event in made)
    assert provenance(preview) == {"preview": True}
    assert b"c2pa" in picture and b"c2pa" not in preview


def test_the_log_says_until_when(server):
    assert len(server.wait_for(message="signing pictures")["certificate_expires"]) == len("2027-01-31")


def test_what_cannot_sign_ends_the_process_before_anything_is_loaded(toy_volume, mounted, tmp_path):
    other = tmp_path / "other.key"
    other.write_bytes(certificates.pem(certificates.ec_key()))
    wrong = certificates.Mounted(mounted.certificate, other, mounted.authority)
    with Server(arguments(toy_volume, wrong)) as server:
        assert server.process.wait(120) == 25
        last = server.wait_for(level="critical")
    assert last["message"] == f"the key in {other} is not that of the first certificate in {mounted.certificate}"
    assert last["exit_code"] == 25
    assert "looking at the volume" not in server.text
    assert "PRIVATE KEY" not in server.text


def test_without_the_package_the_log_says_what_to_install(toy_volume, mounted):
    start = "import runpy, sys; sys.modules['c2pa'] = None; runpy.run_module('predictor', run_name='__main__')"
    with Server(arguments(toy_volume, mounted), program=("-c", start)) as server:
        assert server.process.wait(120) == 25
        assert "pip install 'kserve-text-to-image[c2pa]'" in server.wait_for(level="critical")["message"]
