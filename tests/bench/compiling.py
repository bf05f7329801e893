"""What compiling a denoiser costs and brings: seconds to compile with an empty and with a full cache, how many times faster a
forward becomes by rows, and how an eager module fares in the meantime.

    OMP_NUM_THREADS=1 python tests/bench/compiling.py [--rounds 3] [--device cuda]

The embedded model's denoiser. Each measurement is a process of its own: `alone` compiles and then compares, the two modules
taking turns; `beside` lets the eager module go on in one thread while another one compiles, and checks that its outputs stay
the same to the bit. Two processes, one of each kind, share a cache directory that is empty for the first. Medians count. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_UNET = Path(__file__).parents[2] / "examples/shapes/model/unet"
_ROWS = (1, 2, 4, 8, 16)
_SECONDS = 4  # of the eager module alone, before and after


def example(rows: int, device: str) -> dict[str, Any]:
    """A picture of the model's own size: latents of 8 x 8."""
    import torch

    generator = torch.Generator().manual_seed(rows)
    tensors = {
        "sample": torch.randn(rows, 4, 8, 8, generator=generator),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": torch.randn(rows, 16, 128, generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()} | {"return_dict": False}


def seconds(run: Callable[[], Any], device: str) -> float:
    import torch

    begin = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def forwards(unet: Any, device: str, until: Callable[[], bool]) -> list[float]:
    """Of two rows, one after the other. Raises where an output is not that of the first."""
    import torch

    given, found = example(2, device), []
    [first] = unet(**given)
    while not until():
        found.append(seconds(lambda: unet(**given), device))
        if not torch.equal(unet(**given)[0], first):
            raise SystemExit("an eager forward beside the compiler came out differently")
    return found


def child(kind: str, device: str) -> dict[str, Any]:
    import torch
    from diffusers import UNet2DConditionModel

    from predictor.compiler import compiled

    torch.set_grad_enabled(False)
    unet = UNet2DConditionModel.from_pretrained(_UNET).to(device).eval()
    examples = [example(1, device), example(2, device)]
    if kind == "alone":
        begin = time.perf_counter()
        twin = compiled(unet, examples)
        return {"seconds": time.perf_counter() - begin, "rows": by_rows(unet, twin, device)}

    def for_a_while() -> list[float]:
        end = time.perf_counter() + _SECONDS
        return forwards(unet, device, lambda: time.perf_counter() > end)

    gc.collect()
    gc.freeze()  # as the predictor does once it is ready: the compiler's collections would be long ones
    for_a_while()
    before = for_a_while()
    thread = threading.Thread(target=compiled, args=(unet, examples))
    begin = time.perf_counter()
    thread.start()
    meanwhile = forwards(unet, device, lambda: not thread.is_alive())
    took, after = time.perf_counter() - begin, for_a_while()
    least = statistics.mean(before + after)
    ratios = {"mean": statistics.mean(meanwhile), "median": statistics.median(meanwhile), "longest": max(meanwhile)}
    return {"seconds": took, "times_slower": {name: value / least for name, value in ratios.items()}}


def by_rows(unet: Any, twin: Any, device: str) -> dict[int, float]:
    """How many times faster the twin is."""
    found = {}
    for rows in _ROWS:
        given, times = example(rows, device), ([], [])
        for _ in range(30):
            for module, each in zip((unet, twin), times, strict=True):
                each.append(seconds(partial(module, **given), device))
        found[rows] = statistics.median(times[0]) / statistics.median(times[1])
    return found


def start(kind: str, device: str, cache: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--device", device, "--child", kind],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", choices=("alone", "beside"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.device)))
        return
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(given.rounds):
        for first, second in (("alone", "beside"), ("beside", "alone")):
            with tempfile.TemporaryDirectory() as cache:
                runs.setdefault(f"{first}, cache empty", []).append(start(first, given.device, cache))
                runs.setdefault(f"{second}, cache full", []).append(start(second, given.device, cache))
    medians = {name: median(each) for name, each in sorted(runs.items())}
    for name, found in medians.items():
        print(f"  {name:20} {found}")
    print(json.dumps({"benchmark": "compiling", "device": given.device, "rounds": given.rounds, "medians": medians}))


def median(runs: list[Any]) -> Any:
    if isinstance(runs[0], dict):
        return {key: median([run[key] for run in runs]) for key in runs[0]}
    return round(statistics.median(runs), 2)


if __name__ == "__main__":
    main()
