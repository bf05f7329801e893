"""What the server adds to one request: bare `pipe(...)` against the engine, and against the whole way over HTTP.

    PYTHONPATH=tests python -m bench.overhead --root demo-volume --model-id examples/shapes

Taken in turns in one run, so that whatever else the machine does falls on all alike. The last line is JSON: medians in
milliseconds, and ratios to the bare call of the same round.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from predictor.engine import Engine
from predictor.errors import NotServing
from predictor.model import load
from predictor.request import Params
from predictor.service import _policy
from predictor.settings import Settings
from predictor.warmup import warm_up
from serving import Server


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("demo-volume"), help="volume with the model (demo-volume)")
    parser.add_argument("--model-id", default="examples/shapes", help="org/name on it (examples/shapes)")
    parser.add_argument("--steps", type=int, default=20, help="num_inference_steps (20)")
    parser.add_argument("--rounds", type=int, default=40, help="requests of each kind (40)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each (1)")
    return parser.parse_args()


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    settings = Settings(model_id=options.model_id, root=options.root.resolve())
    model = load(settings, lambda phase: print(phase, file=sys.stderr))
    found = warm_up(model)
    engine = Engine(found.model, _policy(settings, found))
    engine.start()
    arguments = {"num_inference_steps": options.steps, "guidance_scale": model.limits.guidance_scale}
    size = {"width": model.limits.width, "height": model.limits.height}
    params = Params("a large red circle on a blue background", seed=1, **size, **arguments)
    body = {"prompt": params.prompt, "parameters": {"num_inference_steps": options.steps, "seed": 1}}

    @torch.no_grad()
    def bare() -> None:
        pipe = copy.copy(model.pipe)
        pipe(params.prompt, generator=torch.Generator().manual_seed(1), **size, **arguments)

    def through_engine() -> None:
        [job] = engine.submit([params], timeout=600, request_id="bench")
        job.future.result()

    given = ["--model-id", options.model_id, "--root", str(settings.root)]
    with Server(given, environ={"OMP_NUM_THREADS": str(options.threads)}) as server:
        server.name = options.model_id.rpartition("/")[2]
        server.wait_until_ready()
        ways = {"bare": bare, "engine": through_engine, "http": lambda: server.predict(body).raise_for_status()}
        taken = {name: [] for name in ways}
        for round_ in range(options.rounds + 2):
            for name, way in ways.items():
                took = seconds(way)
                if round_ >= 2:
                    taken[name].append(took)
    engine.stop(NotServing("over"))
    ratios = {
        name: statistics.median(own / plain for own, plain in zip(times, taken["bare"], strict=True))
        for name, times in taken.items()
    }
    for name, times in taken.items():
        print(f"{name:8} {1000 * statistics.median(times):8.1f} ms   {ratios[name]:.3f} x bare")
    conditions = {"steps": options.steps, "rounds": options.rounds, "threads": options.threads, "cores": os.cpu_count()}
    medians = {name: round(1000 * statistics.median(times), 2) for name, times in taken.items()}
    print(json.dumps({"median_ms": medians, "ratio": {k: round(v, 4) for k, v in ratios.items()}, **conditions}))


if __name__ == "__main__":
    main()
