from pathlib import Path

import pytest

import toys


@pytest.fixture(scope="session")
def toy_volume(tmp_path_factory) -> Path:
    """A volume with one toy Stable Diffusion as toy/model. Read it only: it is shared by the whole run."""
    folder = tmp_path_factory.mktemp("toy")
    toys.publish(toys.stable_diffusion(folder), folder / "volume", "toy/model")
    return folder / "volume"
