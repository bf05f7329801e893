"""How long a predictor takes from nothing to ready, against the least that it could take.

    OMP_NUM_THREADS=1 python tests/bench/cold_start.py [--rounds 5] [--dtype float16] [--tree ANOTHER_CHECKOUT]…

The least: a process that imports what a predictor imports and then reads the snapshot's files once from end to end. Both get
a snapshot of Stable Diffusion 1.5's denoiser and autoencoder with random float16 weights (1.9 GB), whose pages are dropped
from the page cache before each run. They take turns; medians count. The warm-up picture is left out: the clock stops where it
begins.

On a CPU, weights of the wanted dtype are mapped and not read at all before their first use. So that they are, as on their way
to a GPU, moving the pipeline to its device makes a copy of every parameter here. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_HERE = Path(__file__).parents[2]
_BARE = """
import os, sys, time
from kserve import ModelServer
from kserve.model_server import app
import predictor.server
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
imported, buffer = time.perf_counter(), memoryview(bytearray(4 << 20))
for path in sys.argv[1:]:
    file = os.open(path, os.O_RDONLY)
    while os.readv(file, [buffer]):
        pass
print("imported", imported, "read", time.perf_counter(), flush=True)
"""

# The predictor as it is, but for DiffusionPipeline.to, which is replaced once its module has been imported.
_PREDICTOR = """
import importlib.util, runpy, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name != "diffusers.pipelines.pipeline_utils":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def run_and_replace(module):
            run(module)
            module.DiffusionPipeline.to = copy
        spec.loader.exec_module = run_and_replace
        return spec
def copy(pipe, device):
    for component in pipe.components.values():
        for parameter in component.parameters() if hasattr(component, "parameters") else ():
            parameter.data = parameter.data.clone()
sys.meta_path.insert(0, Finder())
runpy.run_module("predictor", run_name="__main__", alter_sys=True)
"""


def build(root: Path) -> None:
    """A snapshot with the sizes of Stable Diffusion 1.5's denoiser and autoencoder, and a toy text encoder."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    import toys

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        pipe = toys.stable_diffusion(Path(folder))
        pipe.register_modules(
            unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=toys.WIDTH, attention_head_dim=8),
            vae=AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
            ),
        )
        toys.publish(pipe.to(torch.float16), root, "toy/model", variant="fp16")
    os.sync()


def cold(root: Path) -> list[Path]:
    """The snapshot's files, the largest first, none of them in the page cache."""
    files = sorted((path for path in root.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return files


def bare(root: Path) -> dict[str, float]:
    files = cold(root)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _BARE, *map(str, files)],
        cwd=_HERE,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    said = done.stdout.split()
    imported, read = float(said[1]), float(said[3])
    return {"total": read - begin, "imports": imported - begin, "read": read - imported}


def predictor(tree: Path, root: Path, dtype: str) -> dict[str, float]:
    """Seconds from the start of the process to each phase that it logs, as the reader of its log sees them."""
    cold(root)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _PREDICTOR, "--model-id", "toy/model", "--root", str(root)]
    begin, seen = time.perf_counter(), {}
    with subprocess.Popen(
        [*command, "--dtype", dtype, "--device", "cpu", "--http_port", str(port)], cwd=tree, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            message = json.loads(line)["message"] if line.startswith("{") else ""
            seen[message.split()[0] if message else ""] = time.perf_counter() - begin
            if "warm-up" in message:
                break
        process.kill()
    if "making" not in seen:
        raise SystemExit(f"the predictor of {tree} made no warm-up picture: {line}")
    return {"total": seen["making"], "looking": seen["looking"], "reading": seen["reading"], "moving": seen["moving"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument(
        "--tree", type=Path, action="append", default=[_HERE], help="also measure the predictor in this directory"
    )
    parser.add_argument("--volume", type=Path, help="built where it is missing, and kept; default: temporary")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = given.volume or Path(folder)
        if not (root / "toy").exists():
            subprocess.run(
                [sys.executable, "-c", f"import pathlib, cold_start; cold_start.build(pathlib.Path({str(root)!r}))"],
                env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{_HERE / 'tests'}"},
                check=True,
            )
        compete(root, given)


def compete(root: Path, given: argparse.Namespace) -> None:
    racers: dict[str, Callable[[], dict[str, float]]] = {"bare imports and one read": lambda: bare(root)}
    racers |= {str(tree): lambda tree=tree: predictor(tree, root, given.dtype) for tree in given.tree}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in racers}
    for _ in range(given.rounds + 1):  # the first warms the libraries' pages and does not count
        for name, run in racers.items():
            runs[name].append(run())
    medians = {
        name: {phase: round(statistics.median(run[phase] for run in each[1:]), 3) for phase in each[0]}
        for name, each in runs.items()
    }
    least = medians["bare imports and one read"]["total"]
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    print(f"{size / 1e9:.2f} GB, {given.dtype}, median of {given.rounds}: seconds since the start of the process")
    for name, phases in medians.items():
        print(f"  {phases['total'] / least:5.2f} x  {name:40} {phases}")
    print(
        json.dumps({"benchmark": "cold start", "bytes": size, "dtype": given.dtype, "rounds": given.rounds, "medians": medians})
    )


if __name__ == "__main__":
    main()
