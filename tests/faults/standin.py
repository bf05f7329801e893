"""`python -m predictor` with a stand-in at each seam that a request passes, for tests that break it there.

STANDIN_ORDERS names a directory. A file in it, named after a seam, says what is to happen to whoever comes by:

    text, denoise, decode, encode   in the engine's thread, encode in threads of its own
    loop                            the engine's own code, where no exception belongs to a request

    hold N           tells the log and waits until the test lets go of its lock on the file
    fail             a RuntimeError that quotes the prompt
    fail-once        the same, and no second time
    fail-at T        the same where a row of the forward stands at timestep T
    fail-beyond N    torch.OutOfMemoryError where the forward has more rows

The file `clock` holds seconds by which the wall clock is wrong. STANDIN_DISK=full: no file takes a byte. STANDIN_UPLOAD: the
seconds that a body may take.
"""

import fcntl
import functools
import os
import resource
import time
from pathlib import Path

ORDERS = Path(os.environ["STANDIN_ORDERS"])
SECRET = "zebra"  # foreign exceptions quote prompts

right_time = time.time


def wrong_time() -> float:
    clock = ORDERS / "clock"
    return right_time() + (float(clock.read_text()) if clock.exists() else 0.0)


time.time = wrong_time  # before anybody imports it by name

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from predictor import border, images, scheduler, telemetry  # noqa: E402
from predictor.__main__ import main  # noqa: E402


def obey(seam: str, rows: int = 0, timesteps: tuple[float, ...] = ()) -> None:
    try:
        file = (ORDERS / seam).open()
    except FileNotFoundError:
        return
    with file:
        order, _, argument = file.read().partition(" ")
        if order == "hold":
            telemetry.event("held", seam=seam, number=argument)
            fcntl.flock(file, fcntl.LOCK_SH)
        elif order == "fail-beyond":
            if rows > int(argument):
                raise torch.OutOfMemoryError(f"CUDA out of memory while painting {SECRET}")
        elif order != "fail-at" or float(argument) in timesteps:
            if order == "fail-once":
                (ORDERS / seam).unlink()
            raise RuntimeError(f"cannot paint {SECRET}")


def stand_in(owner: object, name: str, seam: str) -> None:
    """Before the function of that name, and with its signature."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def function(*args: object, **kwargs: object) -> object:
        sample, times = kwargs.get("sample"), kwargs.get("timestep")
        if isinstance(sample, torch.Tensor) and isinstance(times, torch.Tensor):
            obey(seam, len(sample), tuple(times.flatten().tolist()))
        else:
            obey(seam)
        return original(*args, **kwargs)

    setattr(owner, name, function)


stand_in(transformers.CLIPTextModel, "forward", "text")
stand_in(diffusers.UNet2DConditionModel, "forward", "denoise")
stand_in(diffusers.AutoencoderKL, "decode", "decode")
stand_in(images, "encode", "encode")
stand_in(scheduler.Scheduler, "next_batch", "loop")
border._UPLOAD = float(os.environ.get("STANDIN_UPLOAD", border._UPLOAD))
if os.environ.get("STANDIN_DISK") == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
os._exit(main())
