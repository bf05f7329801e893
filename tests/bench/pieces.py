"""The measurements of gpu.py, one function each: a subject and the seconds left in, what to report out."""

from __future__ import annotations

import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from bench.subject import FEW, Inputs, Subject, bare, by_rows, forward_of, made, milliseconds, timed, timed_once

_COLD = 2e9  # bytes of weights to write and read


def peak(device: torch.device) -> float:
    """TFLOP/s of a product of bfloat16 matrices: the most that the matrix units give."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * side**3 / min(seconds) / 1e12


def picture(subject: Subject, left: float) -> dict[str, Any]:
    """Bare pipe(), one picture; and on the way, what the denoiser and the decoder are called with."""
    subject.pipe.set_progress_bar_config(disable=True)
    begin = time.perf_counter()
    with mock.patch.object(subject.pipe.vae, "decode", _noting(subject, subject.pipe.vae.decode)):
        subject.inputs = Inputs.of(subject.denoiser, lambda: bare(subject, FEW))
    first = time.perf_counter() - begin
    few = timed_once(subject, FEW)
    subject.seconds = timed_once(subject, subject.steps)
    step = (subject.seconds - few) / (subject.steps - FEW)
    return {
        "first_s": first,  # of four steps, with everything that is done only once
        "steps": subject.steps,
        "picture_s": subject.seconds,
        "step_ms": 1000 * step,
        "beside_steps_ms": 1000 * (few - FEW * step),
    }


def _noting(subject: Subject, decode: Callable[..., Any]) -> Callable[..., Any]:
    def note(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        subject.latents = latents
        return decode(latents, *args, **kwargs)

    return note


def forward(subject: Subject, left: float) -> dict[str, Any]:
    """Seconds of the denoiser by rows, and how much of what the matrix units give."""
    subject.eager = by_rows(subject, left / 2, lambda rows: forward_of(subject, rows))
    with FlopCounterMode(display=False) as counter:
        forward_of(subject, 1)()
    flops = counter.get_total_flops()
    shares = {rows: round(rows * flops / seconds / 1e12 / subject.peak, 4) for rows, seconds in subject.eager.items()}
    return {"ms": milliseconds(subject.eager), "tflop_a_row": flops / 1e12, "of_peak": shares}


def ours(subject: Subject, left: float) -> dict[str, Any]:
    """One picture by our engine, alone, beside the same by bare pipe()."""
    begin = time.perf_counter()
    engine = subject.service._loaded.engine
    assert engine
    loaded = time.perf_counter() - begin
    made(subject, [FEW])
    seconds = made(subject, [subject.steps])
    bare = timed_once(subject, subject.steps)
    found: dict[str, Any] = {"warm_up_s": loaded, "picture_s": seconds, "bare_s": bare, "ratio": seconds / bare}
    policy = getattr(engine, "_policy", None)
    if policy:
        found |= {"row_limit": policy.row_limit, "forward_ms": milliseconds(dict(policy.curve.measured))}
    return found


def saturation(subject: Subject, left: float) -> dict[str, Any]:
    """Pictures a second of mixed steps: one after another by the model itself, and all at once by our engine."""
    mix = [max(round(subject.steps * share), FEW) for share in (0.6, 0.8, 1.0)]
    few = _count(0.15 * left / (subject.seconds or 1), most=6)
    many = _count(0.4 * left / (subject.seconds or 1), most=24)
    model = subject.service.model
    assert model
    made(subject, [FEW] * 4)  # row counts that have not been seen yet are chosen kernels for, or compiled
    begin = time.perf_counter()
    for seed in range(few):
        np.asarray(model.generate(copy.copy(model.pipe), subject.asked(seed, mix[seed % 3])).images[0])
    serial = few / (time.perf_counter() - begin)
    together = many / made(subject, [mix[i % 3] for i in range(many)])
    return {"steps": mix, "serial_per_s": serial, "ours_per_s": together, "ratio": together / serial, "pictures": [few, many]}


def _count(wanted: float, most: int) -> int:
    """A multiple of three, so that the mix is whole."""
    return int(min(max(wanted, 3), most)) // 3 * 3


def graph(subject: Subject, left: float) -> dict[str, Any]:
    """One forward captured as a CUDA graph and replayed, by rows: what is left when nothing is launched one by one."""
    return {"ms": milliseconds(by_rows(subject, left / 2, lambda rows: _captured(forward_of(subject, rows))))}


def _captured(action: Callable[[], Any]) -> Callable[[], None]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded, capture_error_mode="thread_local"):
        output = action()

    def replay(_kept: object = output) -> None:
        recorded.replay()

    return replay


def syncs(subject: Subject, left: float) -> dict[str, Any]:
    """How often the host waits for the device: in a step, and in a picture beside its steps."""
    found = {}
    for name, make in {"bare": lambda steps: bare(subject, steps), "ours": lambda steps: made(subject, [steps])}.items():
        make(6)  # what is done only once has been done
        few, many = (_waits(make, steps) for steps in (6, 10))
        found[name] = {"a_step": (many - few) / 4, "a_picture": few - 6 * (many - few) / 4}
    return found


def _waits(make: Callable[[int], object], steps: int) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            make(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def bits(subject: Subject, left: float) -> dict[str, Any]:
    """Whether the first row comes out the same, to the bit, in forwards of other row counts, and in the same with other
    neighbours or another place."""
    alone = _first(forward_of(subject, 1)())
    across, within = {}, {}
    for rows in [rows for rows in subject.eager if rows > 1] or [2]:
        together = _first(forward_of(subject, rows)())
        across[rows] = "same" if torch.equal(together[:1], alone) else _difference(together[:1], alone)
        moved = _first(_moved(subject, rows)())
        within[rows] = "same" if torch.equal(moved[-1], together[0]) else _difference(moved[-1], together[0])
    return {"finite": bool(alone.isfinite().all()), "across_counts": across, "within_a_count": within}


def _moved(subject: Subject, rows: int) -> Callable[[], Any]:
    """The first row goes last, and others take its neighbours' places."""
    assert subject.inputs
    leaves, spec = tree_flatten(subject.inputs.resized(rows + 1))
    moved = [
        torch.cat([leaf[2:], leaf[:1]]) if isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) == rows + 1 else leaf
        for leaf in leaves
    ]
    arguments, denoiser = tree_unflatten(moved, spec), subject.denoiser
    return lambda: denoiser(**arguments)


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output.sample
    return found


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest, relative to the largest value."""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def decode(subject: Subject, left: float) -> dict[str, Any]:
    """The decoder in the model's own type and in float32, and how far their pictures are apart."""
    vae, latents = subject.pipe.vae, subject.latents
    assert latents is not None
    pictures, found = [], {}
    own, both = vae.dtype, (torch.bfloat16, torch.float32)
    try:
        for dtype in both:
            vae.to(dtype)
            given = latents.to(dtype)
            found[f"{str(dtype).removeprefix('torch.')}_ms"] = 1000 * timed(subject, lambda: vae.decode(given))  # noqa: B023
            pictures.append((vae.decode(given).sample.float() / 2 + 0.5).clamp(0, 1))
    finally:
        vae.to(own)
    return {**found, "mean_difference_of_255": 255 * float((pictures[0] - pictures[1]).abs().mean())}


def channels_last(subject: Subject, left: float) -> dict[str, Any]:
    """Forwards of a U-Net whose weights and inputs have channels last."""
    if not hasattr(subject.pipe, "unet"):
        return {"left_out": "no convolutions to speak of"}
    with _laid_out(subject, torch.channels_last):
        seconds = by_rows(subject, left / 2, lambda rows: forward_of(subject, rows))
    return {"ms": milliseconds(seconds), "speedup": _speedup(subject, seconds)}


def _speedup(subject: Subject, seconds: dict[int, float]) -> dict[int, float]:
    return {rows: round(subject.eager[rows] / each, 3) for rows, each in seconds.items() if rows in subject.eager}


@contextmanager
def _laid_out(subject: Subject, layout: torch.memory_format) -> Iterator[None]:
    inputs = subject.inputs
    assert inputs
    leaves = tuple(
        leaf.to(memory_format=layout) if isinstance(leaf, torch.Tensor) and leaf.ndim == 4 else leaf for leaf in inputs.leaves
    )
    subject.denoiser.to(memory_format=layout)  # type: ignore[call-overload]
    subject.inputs = Inputs(leaves, inputs.spec, inputs.rows)
    try:
        yield
    finally:
        subject.inputs = inputs
        subject.denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def cold_load(subject: Subject, left: float) -> dict[str, Any]:
    """Weights from a file to the device: once from the disk, once from the page cache."""
    weights: dict[str, torch.Tensor] = {}
    for name, weight in subject.denoiser.state_dict().items():
        weights[name] = weight.contiguous()
        if sum(each.nbytes for each in weights.values()) > _COLD:
            break
    size = sum(weight.nbytes for weight in weights.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(weights, path)
        _out_of_the_page_cache(path)
        rates = {}
        for kind in ("cold", "cached"):
            begin = time.perf_counter()
            load_file(path, device=str(subject.device))
            subject.finish()
            rates[f"{kind}_gb_per_s"] = size / (time.perf_counter() - begin) / 1e9
    return {"gb": size / 1e9, **rates}


def _out_of_the_page_cache(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compiled(subject: Subject, left: float) -> dict[str, Any]:
    """Blocks compiled in place, for any row count: what it costs, and what it brings to forwards and to our engine."""
    # Without a GPU there is no compiler to rely on: then the graphs are made and run as they are.
    backend = "inductor" if subject.device.type == "cuda" else "eager"
    begin = time.perf_counter()
    if getattr(subject.denoiser, "_repeated_blocks", None):
        subject.denoiser.compile_repeated_blocks(dynamic=True, backend=backend)  # type: ignore[operator]
    else:
        for block in subject.denoiser.transformer_blocks:  # type: ignore[union-attr]
            block.compile(dynamic=True, backend=backend)
    for rows in (2, 1):  # one row is a case of its own to the compiler
        forward_of(subject, rows)()
    subject.finish()
    found: dict[str, Any] = {"compile_s": time.perf_counter() - begin}
    seconds = by_rows(subject, (left - found["compile_s"]) / 3, lambda rows: forward_of(subject, rows))
    found |= {"ms": milliseconds(seconds), "speedup": _speedup(subject, seconds)}
    left -= time.perf_counter() - begin
    return found | ({"saturation": saturation(subject, left)} if left > 4 * subject.seconds else {})
