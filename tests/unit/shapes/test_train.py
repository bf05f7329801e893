import pytest
import torch

from train import pictures, train

STEPS = 1001


class Interrupted(Exception):
    pass


def trained(checkpoint, *, interrupt_at: int | None = None) -> torch.nn.Module:
    """A line through noise, by the loop that trains the model."""
    torch.manual_seed(0)
    module, calls = torch.nn.Linear(3, 1), 0

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == interrupt_at:
            raise Interrupted
        x = torch.randn(4, 3, generator=generator)
        return ((module(x) - x.sum(1, keepdim=True)) ** 2).mean()

    return train("line", module, loss_of, steps=STEPS, peak_rate=1e-2, checkpoint=checkpoint, seed=7)


def test_an_interrupted_run_ends_where_one_that_was_not_does(tmp_path, capsys):
    whole = trained(tmp_path / "whole.pt")
    with pytest.raises(Interrupted):
        trained(tmp_path / "broken.pt", interrupt_at=700)
    resumed = trained(tmp_path / "broken.pt")
    assert "going on from step 500" in capsys.readouterr().out
    for expected, got in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, got)
    assert torch.allclose(whole.weight, torch.ones(1, 3), atol=0.1)  # and it learned


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = trained(tmp_path / "line.pt")
    again = trained(tmp_path / "line.pt", interrupt_at=1)
    assert torch.equal(first.weight, again.weight)


def test_a_seed_fixes_the_data():
    first, again, other = (pictures(16, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and first[1] == again[1]
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (16, 3, 64, 64) and first[0].dtype == torch.uint8
