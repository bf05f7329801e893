"""Servers that can be told to fail."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from faults.faulty import SECRET, FaultyServer, few


@pytest.fixture(scope="session")
def broken(toy_volume, tmp_path_factory) -> Iterator[FaultyServer]:
    """Whole again after each test. Its disk is full, its volume its own, and bodies must come fast."""
    own = Path(copytree(toy_volume, tmp_path_factory.mktemp("own") / "volume"))
    with FaultyServer(own, tmp_path_factory.mktemp("broken"), STANDIN_DISK="full", STANDIN_UPLOAD="2") as running:
        yield running.wait_until_ready()


@pytest.fixture(scope="session")
def reference(broken) -> bytes:
    """The picture that `few` asks for, made before anything failed."""
    return broken.predict(few()).raise_for_status().content


@pytest.fixture
def server(broken, reference) -> Iterator[FaultyServer]:
    """After the test it must be alive and say so, and make the same picture as before; what it has logged holds no prompt."""
    yield broken
    assert broken.is_fine()
    assert broken.predict(few()).content == reference
    assert SECRET not in broken.text
    assert broken.process.poll() is None
