"""What the server adds to one request: bare `pipe(...)` against the engine, and against the whole way over HTTP; what fixed
rows add; and how long a step is held up by others that begin and end meanwhile.

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
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from predictor.engine import Engine
from predictor.errors import NotServing
from predictor.job import Watch
from predictor.loading import policy
from predictor.model import load
from predictor.policy import Policy
from predictor.request import Params
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


def stalls(engine: Engine, params: Params) -> dict[str, float]:
    """Milliseconds between the steps of a long request, alone and while others begin and end beside it, eight at a time."""
    found = {}
    for name, others in (("alone", 0), ("beside", 8)):
        times: list[float] = []
        watch = Watch(lambda _, times=times: times.append(time.perf_counter()))
        [long] = engine.submit([replace(params, num_inference_steps=150)], timeout=600, request_id="long", watch=watch)
        while others and not long.future.done():
            short = [replace(params, num_inference_steps=2 + i % 4, seed=i) for i in range(others)]
            for job in engine.submit(short, timeout=600, request_id="short"):
                job.future.result()
        long.future.result()
        gaps = sorted(1000 * (after - before) for before, after in pairwise(times))
        found |= {f"{name}_p50": statistics.median(gaps), f"{name}_p95": gaps[int(0.95 * len(gaps))], f"{name}_max": gaps[-1]}
    return {name: round(value, 1) for name, value in found.items()}


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    settings = Settings(model_id=options.model_id, root=options.root.resolve())
    model = load(settings, lambda phase: print(phase, file=sys.stderr))
    found = warm_up(model)
    engine = Engine(found.model, policy(settings, found))
    engine.start()
    arguments = {"num_inference_steps": options.steps, "guidance_scale": model.limits.guidance_scale}
    size = {"width": model.limits.width, "height": model.limits.height}
    params = Params("a red circle", seed=1, **size, **arguments)
    body = {"prompt": params.prompt, "parameters": {"num_inference_steps": options.steps, "seed": 1}}

    @torch.no_grad()
    def bare() -> None:
        pipe = copy.copy(model.pipe)
        pipe(params.prompt, generator=torch.Generator().manual_seed(1), **size, **arguments)

    def through_engine() -> None:
        [job] = engine.submit([params], timeout=600, request_id="bench")
        job.future.result()

    fixed = Engine(found.model, Policy(found.curve, 8, fixed_rows=True))
    fixed.start()

    def with_fixed_rows() -> None:
        [job] = fixed.submit([params], timeout=600, request_id="bench")
        job.future.result()

    # First come first served, for here the long request is to run all the time.
    shared = Engine(found.model, Policy(found.curve, 32, first_come=True))
    shared.start()
    held_up = stalls(shared, params)
    print("between steps, ms: " + "  ".join(f"{name} {value}" for name, value in held_up.items()))

    given = ["--model-id", options.model_id, "--root", str(settings.root)]
    with Server(given, environ={"OMP_NUM_THREADS": str(options.threads)}) as server:
        server.name = options.model_id.rpartition("/")[2]
        server.wait_until_ready()
        ways = {
            "bare": bare,
            "engine": through_engine,
            "fixed rows": with_fixed_rows,
            "http": lambda: server.predict(body).raise_for_status(),
        }
        taken = {name: [] for name in ways}
        for round_ in range(options.rounds + 2):
            for name, way in ways.items():
                took = seconds(way)
                if round_ >= 2:
                    taken[name].append(took)
    for each in (engine, fixed, shared):
        each.stop(NotServing("over"))
    ratios = {
        name: statistics.median(own / plain for own, plain in zip(times, taken["bare"], strict=True))
        for name, times in taken.items()
    }
    for name, times in taken.items():
        print(f"{name:10} {1000 * statistics.median(times):8.1f} ms   {ratios[name]:.3f} x bare")
    conditions = {"steps": options.steps, "rounds": options.rounds, "threads": options.threads, "cores": os.cpu_count()}
    medians = {name: round(1000 * statistics.median(times), 2) for name, times in taken.items()}
    print(
        json.dumps(
            {
                "between_steps_ms": held_up,
                "median_ms": medians,
                "ratio": {k: round(v, 4) for k, v in ratios.items()},
                **conditions,
            }
        )
    )


if __name__ == "__main__":
    main()
