import itertools
import time
from typing import ClassVar

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from fakes import Clock
from predictor.device import Device
from pretend_cuda import pretend_cuda

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_on_a_cpu_the_clock_tells_at_once(monkeypatch):
    """Even on a machine that has a CUDA device as well, busy with something else."""

    def touched(*args, **kwargs):
        raise AssertionError("CUDA was touched")

    for name in ("Event", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, touched)
    clock, told = Clock(), []
    device = Device(torch.device("cpu"), clock)
    for seconds in (3.0, 5.0):
        device.begin()
        clock.now += seconds
        device.end(told.append)
        clock.now += 100
    device.finish()
    device.release_memory()
    assert told == [3.0, 5.0]


class Event:
    """As CUDA's, on a clock that goes on only when somebody waits."""

    waited: ClassVar[list[float]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = float(next(TICKS))

    def synchronize(self) -> None:
        self.waited.append(self.at)

    def elapsed_time(self, other: "Event") -> float:
        return 1000 * (other.at - self.at)


TICKS = itertools.accumulate([0, 1, 10, 2, 10, 4])  # begin, end, begin, end …: pieces of 1, 2 and 4 s


def test_on_cuda_each_piece_is_told_its_own_seconds_once_the_next_is_launched(monkeypatch):
    """And the device is never left with nothing to do: what is waited for is the piece before."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    device, told = Device(torch.device("cuda"), Clock()), []
    for name in ("first", "second", "third"):
        device.begin()
        device.end(lambda seconds, name=name: told.append((name, seconds)))
    assert told == [("first", 1.0), ("second", 2.0)]
    assert Event.waited == [1.0, 13.0]


@pytest.fixture
def cuda() -> Device:
    torch.cuda.synchronize()
    return Device(torch.device("cuda"), time.monotonic)


def _launch(cycles: int = 1) -> torch.cuda.Event:
    """So much of the device's time; what comes back tells whether it is over."""
    torch.cuda._sleep(cycles)
    over = torch.cuda.Event()
    over.record()
    return over


@needs_cuda
def test_the_end_of_a_piece_waits_for_the_one_before(cuda):
    told = []
    for cycles in (50_000_000, 1_000_000_000):
        cuda.begin()
        last = _launch(cycles)
        cuda.end(told.append)
    assert len(told) == 1
    assert not last.query()
    cuda.finish()
    assert last.query()


@needs_cuda
def test_finish_waits_for_everything(cuda):
    launched = [_launch(50_000_000) for _ in range(3)]
    cuda.finish()
    assert all(each.query() for each in launched)


@needs_cuda
def test_memory_that_no_tensor_holds_is_given_back(cuda):
    cuda.release_memory()
    before = torch.cuda.memory_reserved()
    torch.empty(2**28, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_reserved() >= before + 2**28
    cuda.release_memory()
    assert torch.cuda.memory_reserved() == before


def test_a_denoiser_that_copies_nothing_is_left_alone_from_its_second_forward_on():
    """A mode costs something at every operation. Tables that the first forward brings to the device are kept there."""
    with pretend_cuda():
        device, seen = Device(torch.device("cuda", 0), Clock()), []

        def denoise(table: bool) -> None:
            seen.append(bool(_get_current_function_mode_stack()[1:]))  # the first belongs to the device that is not there
            if table:
                torch.ones(3).to("cuda:0")

        for table in (True, True, False, True):
            device.forward(denoise, table)
        assert seen == [True, True, True, False]


def test_compiled_code_runs_in_no_mode():
    with pretend_cuda():
        device, seen = Device(torch.device("cuda", 0), Clock()), []
        device.forward_plainly()
        device.forward(lambda: seen.extend(_get_current_function_mode_stack()[1:]))
        assert not seen


def test_on_a_cpu_nothing_is_put_between():
    device = Device(torch.device("cpu"), Clock())
    assert device.flowing(_get_current_function_mode_stack) == device.forward(_get_current_function_mode_stack) == []
