"""What the engine wants of its device: that it runs neither dry nor far behind, what things take, and memory back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from predictor import telemetry
from predictor.transfers import Transfers

T = TypeVar("T")
Note = Callable[[float], None]


@dataclass(frozen=True)
class Failure:
    """What is left of an exception: the exception itself would keep the memory of the forward that raised it."""

    described: dict[str, object]
    out_of_memory: bool


class Device:
    """CUDA works off launches later than they are made, so it is asked what they took; on a CPU the clock tells."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._clock = clock
        self._begun: Any = None
        self._launched: tuple[Any, Any, Note] | None = None  # the last piece of work: its two events and who wants to know
        self._transfers = Transfers()
        self._denoiser_copies = self._cuda  # as far as is known
        self.broken = False

    def attempt(self, action: Callable[..., T], *arguments: Any) -> T | Failure:
        """What a pipeline or a device may raise has no bounds; it belongs to the jobs at hand and must not end the loop."""
        try:
            return action(*arguments)
        except BaseException as error:  # noqa: BLE001  a panic in Rust is no Exception, and as much one request's own
            # An illegal access, say: nothing works on that device any more until the process is a new one.
            if isinstance(error, torch.AcceleratorError) and not self.broken:
                self.broken = True
                telemetry.failure("the device has failed", **telemetry.described(error))
            return Failure(telemetry.described(error), isinstance(error, torch.OutOfMemoryError))

    def flowing(self, action: Callable[..., T], *arguments: Any) -> T:
        """Runs `action`; what it copies from the host is not waited for."""
        if not self._cuda:
            return action(*arguments)
        with self._transfers:
            return action(*arguments)

    def forward(self, denoise: Callable[..., T], *arguments: Any) -> T:
        """The same for the denoiser, which mostly copies nothing or, at its first forward, tables to keep."""
        if not self._denoiser_copies:
            return denoise(*arguments)
        before = self._transfers.made
        output = self.flowing(denoise, *arguments)
        self._denoiser_copies = self._transfers.made > before
        return output

    def forward_plainly(self) -> None:
        """From now on: what is compiled was compiled for no mode, and would not run in one."""
        self._denoiser_copies = False

    def begin(self) -> None:
        """Of a piece of work."""
        self._begun = _event() if self._cuda else self._clock()

    def end(self, note: Note) -> None:
        """Of that piece. `note` is told the seconds it took once they are known, which on CUDA is at the next call: that waits
        for the piece before, not for this one. So the device always has something to do, and yet what the engine does is at
        most one piece late."""
        if not self._cuda:
            note(self._clock() - self._begun)
            return
        before, self._launched = self._launched, (self._begun, _event(), note)
        if before:
            begun, ended, note = before
            ended.synchronize()
            note(begun.elapsed_time(ended) / 1000)

    def finish(self) -> None:
        """Waits for everything."""
        if self._cuda:
            torch.cuda.synchronize()

    @property
    def memory(self) -> dict[str, Callable[[], float]]:
        """Bytes of each kind, from any thread: PyTorch's own books are read, the device is not asked. Empty on a CPU."""
        if not self._cuda:
            return {}
        total = torch.cuda.get_device_properties(self._device).total_memory
        return {
            "allocated": lambda: torch.cuda.memory_allocated(self._device),
            "reserved": lambda: torch.cuda.memory_reserved(self._device),
            "total": lambda: total,
        }

    def release_memory(self) -> None:
        """That no tensor holds."""
        if self._cuda:
            torch.cuda.empty_cache()


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
