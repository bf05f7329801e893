"""What the README says, done: every command in it is run or, where it needs a cluster, held against the manifests."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from judge import judge
from pictures import Picture
from predictor.images import provenance
from predictor.settings import _OPTIONS, _flag
from serving import REPOSITORY, Server

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = "".join(text for kind, text in BLOCKS if kind == "sh")
COMMANDS = SHELL.splitlines()
CURLS = re.findall(r"^curl (?:[^\n'\\]|\\\n|'[^']*')*", SHELL, re.MULTILINE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`make demo` less the installation."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "examples/demo.py", "--root", str(folder / "volume"), "--out", str(folder / "demo.png")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def server(demo):
    with Server(["--model-id", "examples/shapes", "--root", str(demo[0] / "volume")], name="shapes") as running:
        yield running.wait_until_ready()


def run(curl: str, server: Server, folder: Path) -> bytes:
    here = curl.replace("localhost:8080", f"localhost:{server.port}")
    command = here.replace("curl ", "curl --noproxy '*' --fail --silent ", 1)
    return subprocess.run(["sh", "-c", command], cwd=folder, check=True, capture_output=True).stdout


def header_names(text: str) -> set[str]:
    return set(re.findall(r"^([\w-]+):", text, re.MULTILINE))


def test_the_demo_shows_what_its_prompt_says(demo):
    folder, printed = demo
    picture = (folder / "demo.png").read_bytes()
    assert provenance(picture)["prompt"] == "a large red circle on a blue background"
    seen = judge(Image.open(io.BytesIO(picture)))
    assert all(seen.agrees(Picture("red", "circle", "blue", "large")).values())
    assert "geometry sees a large red circle on blue" in printed
    assert printed.count(" s\n") == 3  # the time of each phase
    assert "stopped with code 0" in printed


@pytest.fixture(scope="module")
def answers(server, tmp_path_factory):
    """What each local curl printed, in order, and the folder in which they ran."""
    folder = tmp_path_factory.mktemp("curls")
    return [run(curl, server, folder) for curl in CURLS if "localhost" in curl], folder


def test_every_local_curl_is_answered_as_shown(answers):
    printed, folder = answers
    assert printed[0] == b""
    shown = next(text for kind, text in BLOCKS if kind == "" and text.startswith("HTTP/1.1"))
    assert header_names(printed[1].decode()) >= header_names(shown)
    assert "x-seed: 7" in printed[1].decode() and "x-seed: 7" in shown
    [example] = [json.loads(text) for kind, text in BLOCKS if kind == "json"]
    for said, got in zip(example["predictions"], json.loads(printed[2])["predictions"], strict=True):
        assert got.pop("image").keys() == said.pop("image").keys()
        assert got == said
    assert judge(Image.open(folder / "picture.png")).shape == "triangle"
    for name in ("demo.png", "circle.png", "plain.webp", "event.png"):
        assert judge(Image.open(folder / name)).shape == "circle", name


def test_events_and_requests_by_id_are_as_shown(answers):
    printed, _ = answers
    shown = next(text for kind, text in BLOCKS if kind == "" and text.startswith("event: progress"))
    streamed = printed[3].decode()
    assert set(re.findall("^event: (.*)", shown, re.MULTILINE)) == set(re.findall("^event: (.*)", streamed, re.MULTILINE))
    for name in ("progress", "preview", "prediction"):
        one, other = (re.search(f"event: {name}\ndata: (.*)", text)[1] for text in (shown, streamed))
        assert json.loads(one).keys() == json.loads(other).keys()
    assert printed[5].decode() in README


def test_what_other_doors_answer_is_the_picture(answers):
    _, folder = answers
    outputs = {each["name"]: each for each in json.loads((folder / "v2.json").read_bytes())["outputs"]}
    shapes = [judge(Image.open(io.BytesIO(base64.b64decode(each)))).shape for each in outputs["image"]["data"]]
    assert (shapes, outputs["seed"]["data"]) == (["circle", "square"], [7, 8])
    [picture] = json.loads((folder / "a1111.json").read_bytes())["images"]
    assert judge(Image.open(io.BytesIO(base64.b64decode(picture)))).shape == "circle"


@pytest.mark.parametrize(("name", "said"), [("openai", "partial_image"), ("grpc", ""), ("huggingface", "")])
def test_every_python_client_gets_the_picture(server, tmp_path, name, said):
    program = next(text for kind, text in BLOCKS if kind == "python" and f"{name}.png" in text)
    here = program.replace("localhost:8080", f"localhost:{server.port}").replace(
        "localhost:8081", f"localhost:{server.grpc_port}"
    )
    environ = os.environ | {"NO_PROXY": "localhost", "no_proxy": "localhost"}
    done = subprocess.run([sys.executable, "-c", here], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("partial_image") == (2 if said else 0)
    assert judge(Image.open(tmp_path / f"{name}.png")).shape == "circle"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("docker build")])
def test_docker_builds_name_files_and_images_that_there_are(command):
    parts = shlex.split(command)
    assert parts[-1] == "."
    assert (REPOSITORY / (parts[parts.index("--file") + 1] if "--file" in parts else "Dockerfile")).is_file()
    base = [(REPOSITORY / "manifests/base" / name).read_text() for name in ("20-download.yaml", "30-serving-runtime.yaml")]
    used = {text.partition("image: ")[2].split()[0] for text in base}
    assert parts[parts.index("--tag") + 1] in used


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl on this machine")
@pytest.mark.parametrize("command", [command for command in COMMANDS if "kubectl" in command])
def test_kubectl_commands_name_what_the_manifests_hold(command):
    rendered = subprocess.run(
        ["kubectl", "kustomize", "manifests/overlays/knative"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    there = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in yaml.safe_load_all(rendered.stdout)}
    for path in re.findall(r"manifests/\S+", command):
        assert (REPOSITORY / path).exists()
    named = re.findall(r"\b(job|inferenceservice|servingruntime|persistentvolumeclaim)[/ ]([\w.-]+)", command)
    assert named or "manifests/" in command
    assert {f"{kind}/{name}" for kind, name in named} <= there


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^    )make (\w[\w-]*)", README, re.MULTILINE))))
def test_make_knows_its_targets(target):
    subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, check=True, capture_output=True)


def test_the_settings_table_is_that_of_the_program():
    rows = re.findall(r"^\| `(--[\w-]+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)
    said = {flag: (default.strip("`"), text) for flag, default, text in rows}
    real = {
        _flag(name): ("" if field.default in ("", None) else str(field.default).lower(), field.metadata["help"])
        for name, field in _OPTIONS.items()
    }
    assert said == real


def test_the_tree_names_every_module():
    tree = next(text for _, text in BLOCKS if text.startswith("README.md"))
    for package in ("predictor", "downloader"):
        section = tree.partition(f"{package}/ ")[2].partition("/ ")[0]
        for module in (REPOSITORY / package).glob("*.py"):
            if module.stem != "__init__":
                assert re.search(rf"\b{module.stem}\b", section), module


def test_the_pictures_it_shows_are_there():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / path).exists(), path
