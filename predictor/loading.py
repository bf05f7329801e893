"""From settings to an engine that serves: the phases of a start, and the compilation that may follow it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from predictor import metrics, model, telemetry
from predictor.compiler import compiled
from predictor.engine import Engine
from predictor.model import TextToImage
from predictor.phases import Phases
from predictor.policy import Policy
from predictor.rendezvous import Call, Rendezvous, resized
from predictor.settings import Settings
from predictor.warmup import Findings, warm_up

if TYPE_CHECKING:
    from predictor.credentials import Signer

# By the first word of what is told about it.
_PHASES = {"looking": "read", "reading": "read", "moving": "to_device", "making": "warm_up"}
_REPRODUCIBLE_ROWS = 8  # of every forward: what is measured differs from one start to the next


@dataclass(frozen=True)
class Loaded:
    model: TextToImage
    engine: Engine
    signer: Signer | None
    call: Call | None  # of the denoiser, an example; None where there is none to be seen
    told: dict[str, object]  # what there is to know of it, for the log

    def compile(self) -> None:
        """Blocks for minutes, while the engine serves with the module as it is."""
        if not self.call:
            return
        begin = time.monotonic()
        try:
            examples = [resized(self.call, rows).arguments for rows in (1, 2, self.call.rows)]
            twin = compiled(Rendezvous(self.model.pipe).denoiser, examples)
            self.engine.replace_denoiser(twin)
        except Exception as error:  # noqa: BLE001  a compiler has no end of ways to fail, and nothing depends on it
            telemetry.failure("not compiled: serving as before", **telemetry.described(error))
        else:
            metrics.compiled.set(1)
            telemetry.event("compiled", seconds=round(time.monotonic() - begin, 2))


def load(settings: Settings, tell: Callable[[str], None], phases: Phases, on_fault: Callable[[], None]) -> Loaded:
    """Blocks until first pictures have been made. Raises StartupErrors. `tell` is told what begins; `phases` are those of the
    start, of which the last has not ended; `on_fault` is for the engine."""

    def enter(what: str) -> None:
        phases.begin(_PHASES[what.partition(" ")[0]])
        tell(what)

    signer = _signer(settings)  # before all that takes long: it may end the process
    read = model.load(settings, enter)
    enter("making warm-up pictures")
    found = warm_up(read, settings.max_rows or (_REPRODUCIBLE_ROWS if settings.reproducible else None))
    engine = Engine(found.model, policy(settings, found), on_fault=on_fault)
    engine.start()
    phases.begin("ready")
    _measure(settings.name, found, phases)
    told = {
        "commit": read.snapshot.commit,
        "shares_forwards": found.shares,
        "row_limit": found.row_limit,
        "reason": found.reason,
        "forward_ms": {rows: round(1000 * seconds, 2) for rows, seconds in found.curve.measured.items()},
        "seconds": {phase: round(seconds, 2) for phase, seconds in phases.seconds.items()},
    }
    return Loaded(found.model, engine, signer, found.call, told)


def _signer(settings: Settings) -> Signer | None:
    """Raises SigningUnavailable."""
    if not (settings.c2pa_certificate and settings.c2pa_key):
        return None
    from predictor.credentials import Signer

    signer = Signer(settings.c2pa_certificate, settings.c2pa_key)
    telemetry.event("signing pictures", model=settings.name, certificate_expires=f"{signer.expires:%F}")
    return signer


def policy(settings: Settings, found: Findings) -> Policy:
    return Policy(
        curve=found.curve,
        row_limit=found.row_limit,
        first_come=settings.order == "first-come",
        fixed_rows=settings.reproducible,
        max_seconds=settings.max_queue_seconds,
        hang_after=settings.hang_after,
    )


def _measure(name: str, found: Findings, phases: Phases) -> None:
    for phase, seconds in phases.seconds.items():
        metrics.start_seconds.labels(phase).set(seconds)
    mode, pipe, made = "shared" if found.shares else "turns", found.model.pipe, found.model.snapshot
    for each in ("shared", "turns"):
        metrics.mode.labels(each).set(each == mode)
    dtype, device = str(pipe.dtype).removeprefix("torch."), str(pipe.device)
    metrics.model_info.clear()
    metrics.model_info.labels(name, made.repo, made.commit, made.pipeline, dtype, device, mode, found.reason).set(1)
