import pytest
import torch

from predictor.transfers import Transfers
from pretend_cuda import pretend_cuda

DEVICE = "cuda:0"
# Ways to take numbers from the host to the device.
MOVES = {
    "to, by name": lambda numbers, there: numbers.to(device=DEVICE),
    "to, with a type": lambda numbers, there: numbers.to(DEVICE, torch.float16),
    "to, as another": lambda numbers, there: numbers.to(there),
    "to, not waiting by itself": lambda numbers, there: numbers.to(DEVICE, non_blocking=True),
    "tensor": lambda numbers, there: torch.tensor([1.0, 2.0], device=DEVICE),
    "as_tensor": lambda numbers, there: torch.as_tensor(numbers, device=DEVICE),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_nobody_waits_for_what_goes_to_the_device(move):
    with pretend_cuda() as waits:
        numbers, there = torch.tensor([1.0, 2.0]), torch.zeros(3, device=DEVICE)
        expected = move(numbers, there)
        assert len(waits.noted) == 1
        with Transfers() as transfers:
            moved = move(numbers, there)
        assert len(waits.noted) == 1
        assert transfers.made == 1
        assert (moved.device, moved.dtype) == (expected.device, expected.dtype)
        assert moved.tolist() == [1.0, 2.0]


def test_what_is_reckoned_with_on_the_device_gets_there():
    """Sana Sprint multiplies latents by its sampler's times, one for each row, which are kept on the host."""
    with pretend_cuda() as waits:
        times, latents = torch.tensor([[2.0], [3.0]]), torch.ones(2, 2, device=DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            times * latents
        with Transfers():
            assert (times * latents).device == latents.device
            assert not waits.noted
            with pytest.raises(RuntimeError, match="size of tensor"):
                latents * torch.ones(3, device=DEVICE)


def test_all_else_is_as_it_was():
    with pretend_cuda() as waits:
        there = torch.ones(2, device=DEVICE)
        with Transfers() as transfers:
            assert torch.tensor([1.5]).to(torch.float64).dtype == torch.float64
            assert there.to(torch.float16).dtype == torch.float16
            assert torch.as_tensor(there, device=DEVICE) is there
            assert there.to("cpu").device.type == "cpu"
        assert transfers.made == 0
        assert len(waits.noted) == 1  # what comes back has to be waited for


def test_who_owns_pinned_memory_may_write_into_it():
    """So it is left to PyTorch, which waits."""
    with pretend_cuda() as waits, Transfers() as transfers:
        torch.ones(2).pin_memory().to(DEVICE)
        assert (transfers.made, len(waits.noted)) == (0, 1)


def test_a_copy_that_is_asked_for_is_made():
    with pretend_cuda(), Transfers():
        numbers = torch.ones(2)
        assert numbers.to("cpu", copy=True) is not numbers
