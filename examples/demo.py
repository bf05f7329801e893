"""From nothing to a picture on one machine: fill a volume, serve from it, ask with the README's own curl, stop.

python examples/demo.py --root demo-volume --out demo.png
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL_ID = "examples/shapes"
PORT = 8080  # what the README's curl asks
START = 300  # seconds that a slow machine may take to import torch and load


@contextmanager
def phase(name: str) -> Iterator[None]:
    print(f"{name} …", flush=True)
    begin = time.monotonic()
    yield
    print(f"    {time.monotonic() - begin:.1f} s", flush=True)


def readme_curl(readme: Path, out: Path, port: int) -> list[str]:
    """The README's curl that writes demo.png, as arguments."""
    found = re.search(r"^curl [^\n]*(?:\\\n[^\n]*)*-o demo\.png$", readme.read_text(), re.MULTILINE)
    assert found, "the README has no curl that writes demo.png"
    command = found.group().replace(f"localhost:{PORT}", f"localhost:{port}").replace("-o demo.png", f"-o '{out}'")
    return ["sh", "-c", command.replace("curl ", "curl --noproxy '*' --fail-with-body --silent --show-error ", 1)]


def port_to_use() -> int:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)):
            return PORT
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            print(f"port {PORT} is taken on this machine; using {(port := int(free.getsockname()[1]))}")
            return port


@contextmanager
def served(root: Path, port: int) -> Iterator[None]:
    """The predictor as a process of its own, ready; ended on the way out."""
    url = f"http://localhost:{port}/v1/models/shapes"
    command = [sys.executable, "-m", "predictor", "--model-id", MODEL_ID, "--root", str(root)]
    command += ["--http_port", str(port), "--enable_grpc", "false"]
    log = root / "predictor.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=HERE.parent, stderr=stream, stdout=stream)
    try:
        end = time.monotonic() + START
        while not ready(url):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the predictor did not start; its log:\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        print(f"predictor stopped with code {process.wait(60)}; its log is {log}")


def ready(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url) as answer:
            return bool(json.load(answer)["ready"])
    except (urllib.error.URLError, ConnectionError):
        return False


def described(picture: Path) -> str:
    sys.path.insert(0, str(HERE / "shapes"))
    from PIL import Image

    from judge import judge

    seen = judge(Image.open(picture))
    return f"{seen.size} {seen.colour} {seen.shape} on {seen.background}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("demo-volume"), help="volume directory (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the picture (default: %(default)s)")
    args = parser.parse_args()
    root, out = args.root.resolve(), args.out.resolve()
    root.mkdir(parents=True, exist_ok=True)
    with phase(f"1. downloader: the model of {MODEL_ID} onto the volume {args.root}"):
        source = str(HERE / "shapes/model")
        command = [sys.executable, "-m", "downloader", "--model-id", MODEL_ID, "--source", source, "--root", str(root)]
        subprocess.run(command, cwd=HERE.parent, check=True)
    port = port_to_use()
    with ExitStack() as stack:
        with phase("2. predictor: imports, weights, warm-up picture"):
            stack.enter_context(served(root, port))
        command = readme_curl(HERE.parent / "README.md", out, port)
        with phase(f"3. {command[-1]}"):
            subprocess.run(command, check=True)
    print(f"{args.out}: geometry sees a {described(out)}")


if __name__ == "__main__":
    main()
