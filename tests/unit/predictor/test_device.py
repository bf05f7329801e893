import pytest
import torch

from predictor.device import Device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("action", ["pace", "finish", "release_memory"])
def test_on_a_cpu_there_is_nothing_to_wait_for(action, monkeypatch):
    """Not even on a machine that has a CUDA device as well, busy with something else."""

    def touched(*args, **kwargs):
        raise AssertionError("CUDA was touched")

    for name in ("Event", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, touched)
    device = Device(torch.device("cpu"))
    for _ in range(3):
        getattr(device, action)()


@pytest.fixture
def cuda() -> Device:
    torch.cuda.synchronize()
    return Device(torch.device("cuda"))


def _launch(cycles: int = 1) -> torch.cuda.Event:
    """So much of the device's time; what comes back tells whether it is over."""
    torch.cuda._sleep(cycles)
    over = torch.cuda.Event()
    over.record()
    return over


@needs_cuda
def test_pace_waits_for_what_came_before_and_leaves_the_device_something_to_do(cuda):
    first = _launch(50_000_000)
    cuda.pace()
    assert not first.query()  # nothing was under way before
    second = _launch(1_000_000_000)
    cuda.pace()
    assert first.query()
    assert not second.query()
    third = _launch()
    cuda.pace()
    assert second.query()
    cuda.finish()
    assert third.query()


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
