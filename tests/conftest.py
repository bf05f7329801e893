from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import toys


@pytest.fixture(scope="session")
def toy_volume(tmp_path_factory) -> Path:
    """A volume with one toy Stable Diffusion as toy/model. Read it only: it is shared by the whole run."""
    folder = tmp_path_factory.mktemp("toy")
    toys.publish(toys.stable_diffusion(folder), folder / "volume", "toy/model")
    return folder / "volume"


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    """As they were: a test that steps an engine in its own thread leaves them to whichever pipeline ended last."""
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)
