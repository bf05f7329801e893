import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from downloader.errors import TransientError, VolumeError
from downloader.events import Events
from downloader.staging import STALE, Staging, remove_tree, tree_size


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return tmp_path / ".staging"


def left_behind(parent: Path, *, age: float, lease: bool = True) -> Path:
    """The staging directory of a run that last gave a sign of life `age` seconds ago."""
    other = parent / "dead-1-ab"
    (other / "snapshot").mkdir(parents=True)
    (other / "snapshot/unet.safetensors").write_bytes(b"x" * 1000)
    sign = other
    if lease:
        sign = other / "lease"
        sign.touch()
    then = sign.stat().st_mtime - age
    os.utime(sign, (then, then))
    return other


def test_it_is_there_with_a_lease_and_gone_afterwards(parent: Path) -> None:
    with Staging(parent).open() as staging:
        assert staging.snapshot.is_dir()
        assert (staging.path / "lease").is_file()
    assert list(parent.iterdir()) == []


def test_it_goes_when_the_run_fails(parent: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Staging(parent).open() as staging:
        (staging.snapshot / "half").touch()
        raise KeyboardInterrupt
    assert list(parent.iterdir()) == []


def test_no_two_are_the_same(parent: Path) -> None:
    assert Staging(parent).path != Staging(parent).path


@pytest.mark.parametrize("lease", [True, False])
def test_only_the_dead_are_removed(parent: Path, lease: bool) -> None:
    stream = io.StringIO()
    with Staging(parent).open() as staging:
        other = left_behind(parent, age=STALE - 60, lease=lease)
        staging.remove_stale(Events(stream))
        assert other.exists()
        remove_tree(other)
        other = left_behind(parent, age=STALE + 60, lease=lease)
        staging.remove_stale(Events(stream))
        assert not other.exists()
        assert staging.snapshot.exists()
    assert "left behind by a run that died" in stream.getvalue()


def test_space_is_asked_for_before_it_is_used(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=10_000, f_frsize=4096))
    with Staging(parent).open() as staging:
        staging.require(30_000_000)
        with pytest.raises(VolumeError, match=r"40.00 MB do not fit in the 40.96 MB that are free"):
            staging.require(40_000_000)


def test_space_that_another_run_holds_may_come_back(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Staging(parent).open() as staging:
        left_behind(parent, age=0)
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=2**11 + 1, f_frsize=4096))
        staging.require(4096)
        with pytest.raises(TransientError, match="another run's staging holds 1.00 kB"):
            staging.require(4096 + 1000)


def test_tree_size_counts_files_of_every_depth(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"123")
    (tmp_path / "d").write_bytes(b"4")
    assert tree_size(tmp_path) == 4
