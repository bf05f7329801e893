import hashlib
import io
import threading
from pathlib import Path

import pytest

from downloader.errors import IntegrityError, NotFound, TransientError, VolumeError
from downloader.events import Events
from downloader.fetch import Retry, fetch
from downloader.plan import File, Plan

GOOD = b"good bytes"


class FakeSource:
    """A source whose answers are scripted: per path, the exceptions and contents to give before the good ones."""

    def __init__(self, script: dict[str, list[bytes | Exception]] | None = None) -> None:
        self.script = script or {}
        self.calls: list[str] = []

    def resolve(self) -> str:
        raise NotImplementedError

    def plan(self, commit: str) -> Plan:
        raise NotImplementedError

    def fetch(self, commit: str, file: File, directory: Path) -> None:
        self.calls.append(file.path)
        path = directory / file.path
        assert not path.exists(), "a bad file must be discarded before it is fetched again"
        waiting = self.script.get(file.path)
        answer = waiting.pop(0) if waiting else GOOD
        if isinstance(answer, Exception):
            raise answer
        path.write_bytes(answer)

    def discard(self, file: File, directory: Path) -> None:
        (directory / file.path).unlink(missing_ok=True)


def files(*paths: str) -> list[File]:
    return [File(path, len(GOOD), sha256=hashlib.sha256(GOOD).hexdigest()) for path in paths]


def retry(retries: int = 2, waits: list[float] | None = None) -> Retry:
    return Retry(retries, 1.0, Events(io.StringIO()), (waits if waits is not None else []).append)


def test_everything_comes_in_with_its_sha256(tmp_path: Path) -> None:
    fetched = fetch(FakeSource(), "c", files(*"badcefgh"), tmp_path, retry())
    assert [file.path for file in fetched] == list("abcdefgh")
    assert {file.sha256 for file in fetched} == {hashlib.sha256(GOOD).hexdigest()}


def test_nothing_wanted_is_nothing_asked(tmp_path: Path) -> None:
    assert fetch(FakeSource(), "c", [], tmp_path, retry()) == ()


def test_transient_errors_are_retried_with_growing_waits(tmp_path: Path) -> None:
    waits: list[float] = []
    source = FakeSource({"a": [TransientError("reset"), TransientError("503")]})
    fetch(source, "c", files("a"), tmp_path, retry(2, waits))
    assert source.calls == ["a"] * 3
    assert 0.5 <= waits[0] <= 1.5 and 1.0 <= waits[1] <= 3.0


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    waits: list[float] = []
    fetch(FakeSource({"a": [TransientError("429", retry_after=90)]}), "c", files("a"), tmp_path, retry(2, waits))
    assert waits == [90]


def test_retries_run_out(tmp_path: Path) -> None:
    source = FakeSource({"a": [TransientError("503")] * 9})
    with pytest.raises(TransientError, match=r"a: 503 \(gave up after 3 tries\)"):
        fetch(source, "c", files("a"), tmp_path, retry(2))
    assert len(source.calls) == 3


def test_a_final_error_is_not_retried(tmp_path: Path) -> None:
    source = FakeSource({"a": [NotFound("gone")]})
    with pytest.raises(NotFound):
        fetch(source, "c", files("a"), tmp_path, retry())
    assert source.calls == ["a"]


def test_a_full_disk_is_the_volumes_fault(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="no space left"):
        fetch(FakeSource({"a": [OSError(28, "No space left on device")]}), "c", files("a"), tmp_path, retry())


def test_only_the_corrupt_file_is_fetched_again(tmp_path: Path) -> None:
    source = FakeSource({"a": [b"evil bytes"], "b": [b"short"]})
    fetched = fetch(source, "c", files("a", "b", "c"), tmp_path, retry())
    assert sorted(source.calls) == ["a", "a", "b", "b", "c"]
    assert [file.path for file in fetched] == ["a", "b", "c"]


def test_corrupt_for_ever_gives_up_after_three_refetches(tmp_path: Path) -> None:
    source = FakeSource({"a": [b"evil bytes"] * 9})
    with pytest.raises(IntegrityError, match="still wrong after 3 refetches: a: sha256 is"):
        fetch(source, "c", files("a"), tmp_path, retry())
    assert source.calls == ["a"] * 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_a_thread_ends_the_run_and_does_not_hang_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with pytest.raises(RuntimeError, match="thread died"):
        fetch(FakeSource({"a": [ZeroDivisionError()]}), "c", files("a"), tmp_path, retry())
