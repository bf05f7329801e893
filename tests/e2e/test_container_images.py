"""The whole way in both images, built from their Dockerfiles and run as a cluster would: as any uid, on a root that is
read-only, with /tmp as the only scratch space, and with the volume read-only for the predictor.

`make images-test`: needs root and buildah. Without the base image the stand-in of ../shared/tools is used. There is no
container runtime here, only namespaces, bind mounts and a chroot: no cgroups, no seccomp, the machine's own network.
"""

import base64
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.images

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT.parent / "shared" / "tools" / "stand-in-base"
BASE = "docker.io/library/python:3.11-slim-bookworm"
MODEL = ROOT / "examples/shapes/model"  # a diffusers directory
ENVIRON = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot", **os.environ}

# Mounts live in a namespace of their own and end with it. $0 is the root, then SOURCE:TARGET:MODE ..., "--", a command.
IN_A_CONTAINER = """
root=$0
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
    source=${1%%:*}; target=${1#*:}; mode=${target##*:}; target=$root${target%:*}
    mount --bind "$source" "$target"
    mount -o "remount,bind,$mode" "$target"
    shift
done
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -o remount,bind,ro "$root"
exec "$@"
"""


def buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], env=ENVIRON, capture_output=True, text=True)
    assert done.returncode == 0, f"buildah {' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def base() -> None:
    """The Dockerfiles' base image, or what stands in for it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for mounts")
    if shutil.which("buildah"):
        for way in (["inspect", "--type", "image", BASE], ["pull", "--quiet", BASE]):
            with suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
                subprocess.run(["buildah", *way], env=ENVIRON, capture_output=True, check=True, timeout=300)
                return
    if not STAND_IN.is_file():
        pytest.skip(f"needs buildah with {BASE}, or {STAND_IN} to make a stand-in")
    subprocess.run([str(STAND_IN), BASE], env=ENVIRON, check=True, timeout=1200)


@dataclass(frozen=True)
class Image:
    config: dict[str, Any]  # User, Env, Entrypoint, WorkingDir
    root: Path

    def start(
        self,
        arguments: Sequence[str],
        *,
        uid: int,
        mounts: Sequence[str] = (),
        environ: Sequence[str] = (),
        entrypoint: Sequence[str] | None = None,
        log: Path,
    ) -> subprocess.Popen[bytes]:
        for target in (mount.split(":")[1] for mount in mounts):
            (self.root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        command = [*(self.config["Entrypoint"] if entrypoint is None else entrypoint), *arguments]
        inside = ["env", "-i", "-C", self.config["WorkingDir"], *self.config["Env"], *environ, *command]
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--"]
        user = ["chroot", f"--userspec={uid}:{uid}", "--groups=", str(self.root)]
        with log.open("wb") as output:
            return subprocess.Popen(
                [*own, "sh", "-ec", IN_A_CONTAINER, str(self.root), *mounts, "--", *user, *inside],
                stdout=output,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture(scope="session")
def built(base: None) -> Iterator[Callable[[str, str], Image]]:
    containers = []

    def build(name: str, dockerfile: str) -> Image:
        tag = f"localhost/text-to-image-{name}:test"
        buildah("bud", "--pull-never", "--layers", "--file", str(ROOT / dockerfile), "--tag", tag, str(ROOT))
        containers.append(buildah("from", "--pull-never", tag))
        config = json.loads(buildah("inspect", "--type", "image", tag))["OCIv1"]["config"]
        return Image(config, Path(buildah("mount", containers[-1])))

    yield build
    for container in containers:
        buildah("rm", container)


@pytest.fixture(scope="session")
def downloader(built: Callable[[str, str], Image]) -> Image:
    return built("downloader", "Dockerfile.downloader")


@pytest.fixture(scope="session")
def predictor(built: Callable[[str, str], Image]) -> Image:
    return built("predictor", "Dockerfile")


@pytest.fixture(scope="session")
def volume(downloader: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Job leaves behind, written by a uid that the predictor does not have."""
    folder, source, log = (tmp_path_factory.mktemp("download") / name for name in ("volume", "source", "log"))
    shutil.copytree(MODEL, source, copy_function=shutil.copyfile)  # not the modes: whoever runs this may keep files private
    folder.mkdir()
    uid = random.randrange(20_000, 40_000)
    os.chown(folder, uid, uid)
    arguments = ["--model-id=examples/shapes", "--revision=main", "--root=/models", "--source=/source"]
    mounts = [f"{folder}:/models:rw", f"{source}:/source:ro"]
    process = downloader.start(arguments, uid=uid, mounts=mounts, log=log)
    assert process.wait(timeout=120) == 0, log.read_text()
    assert {path.stat().st_uid for path in folder.rglob("*")} == {uid}
    return folder


def runtime_arguments() -> list[str]:
    """As the manifests start the server, except for the model and for the time a stop may take."""
    runtime = yaml.safe_load((ROOT / "manifests/base/30-serving-runtime.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    return [*container["args"], "--model-id=examples/shapes"]


def get(url: str, body: bytes | None = None) -> tuple[int, str, bytes]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers.get("content-type", ""), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, "", error.read()
    except urllib.error.URLError:
        return 0, "", b""


def terminate(process: subprocess.Popen[bytes]) -> None:
    """TERM to the process with PID 1 inside: unshare's only child."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_images_are_for_no_user_in_particular(downloader: Image, predictor: Image) -> None:
    for image in (downloader, predictor):
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.config["User"])
        environ = dict(entry.split("=", 1) for entry in image.config["Env"])
        assert environ["HOME"] == "/tmp" and environ["PYTHONDONTWRITEBYTECODE"] == "1"
        for path in (image.root / "app").rglob("*"):
            assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_the_downloader_holds_no_torch(downloader: Image) -> None:
    (packages,) = (downloader.root / "opt/venv/lib").glob("python3*/site-packages")
    names = {path.name for path in packages.iterdir()}
    assert "huggingface_hub" in names
    assert not names & {"torch", "diffusers", "transformers", "kserve", "pip"}


@pytest.mark.parametrize(
    ("name", "imports"),
    [("downloader", "downloader.__main__, huggingface_hub"), ("predictor", "predictor.server, torch, diffusers, kserve")],
)
def test_nothing_is_compiled_at_the_start(name: str, imports: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    image: Image = request.getfixturevalue(name)
    code = f"""if True:
        import {imports}
        import os, sys
        cached = {{name: getattr(module, "__cached__", None) for name, module in sys.modules.items()}}
        print(sorted(name for name, path in cached.items() if isinstance(path, str) and not os.path.exists(path)))
        print(len(cached))
    """
    log = tmp_path / "log"
    process = image.start(["-c", code], uid=23456, entrypoint=["python"], log=log)
    assert process.wait(timeout=120) == 0, log.read_text()
    uncompiled, loaded = log.read_text().splitlines()[-2:]
    assert uncompiled == "[]" and int(loaded) > 100


def test_a_picture_from_the_images(predictor: Image, volume: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    process = predictor.start(
        [*runtime_arguments(), f"--http_port={port}"],
        uid=random.randrange(40_000, 60_000),
        mounts=[f"{volume}:/mnt/models:ro"],
        environ=["INFERENCE_SERVICE_NAME=text-to-image"],
        log=log,
    )
    try:
        model = f"http://127.0.0.1:{port}/v1/models/text-to-image"
        deadline = time.monotonic() + 120
        while get(model)[0] != 200:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert get(f"http://127.0.0.1:{port}/livez")[0] == 200

        body = {"prompt": "a red circle", "parameters": {"num_inference_steps": 2, "seed": 7}}
        status, media_type, picture = get(f"{model}:predict", json.dumps(body).encode())
        assert (status, media_type) == (200, "image/png"), picture[:500]
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        status, _, answer = get(f"{model}:predict", json.dumps({"instances": [body]}).encode())
        assert status == 200, answer[:500]
        assert base64.b64decode(json.loads(answer)["predictions"][0]["image"]["b64"]).startswith(b"\x89PNG")

        terminate(process)
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        process.kill()
    assert "Permission denied" not in log.read_text() and "Read-only file system" not in log.read_text()


def test_an_empty_volume_ends_the_predictor_with_20(predictor: Image, tmp_path: Path) -> None:
    empty, log = tmp_path / "empty", tmp_path / "log"
    empty.mkdir()
    process = predictor.start(
        [*runtime_arguments(), f"--http_port={free_port()}"], uid=23456, mounts=[f"{empty}:/mnt/models:ro"], log=log
    )
    try:
        assert process.wait(timeout=120) == 20, log.read_text()
    finally:
        process.kill()
