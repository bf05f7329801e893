"""The composition in this process, from a local directory; `tests/e2e` runs it as the Job does."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from downloader import __main__ as downloader
from downloader.errors import Terminated
from downloader.local import Local
from standin_hub import tiny_pipeline


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """`main` owns its process; give this one back its umask and signals."""
    mask = os.umask(0o022)
    os.umask(mask)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    os.umask(mask)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    for name, content in tiny_pipeline(weights=1000).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def run(source: Path, root: Path, *flags: str) -> int:
    common = ["--model-id", "examples/shapes", "--source", str(source), "--root", str(root), "--backoff", "0"]
    return downloader.main([*common, "--termination-log", str(root / "log"), *flags])


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]


def test_a_first_and_a_second_run(source: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, root) == 0
    assert said(capsys) == ["start", "resolved", "plan", "progress", "hashing", "verified", "published", "ref", "done"]
    name = (root / "examples/shapes/refs/main").read_text().strip()
    assert (root / "examples/shapes/snapshots" / name / "manifest.json").is_file()
    assert list((root / "examples/shapes/.staging").iterdir()) == []
    assert run(source, root, "--verify", "full") == 0
    assert said(capsys) == ["start", "resolved", "present", "done"]
    assert not (root / "log").exists()


@pytest.mark.parametrize(("mask", "directory", "file"), [(0o077, 0o755, 0o644), (0o002, 0o775, 0o664)])
def test_any_uid_can_read_whatever_the_umask(source: Path, root: Path, mask: int, directory: int, file: int) -> None:
    os.umask(mask)
    assert run(source, root) == 0
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in (root / "examples").rglob("*")}
    assert {path.stat().st_mode & 0o777 for path in (root / "examples").rglob("*") if path.is_dir()} == {directory}
    assert modes == {True: directory, False: file}


def test_a_damaged_snapshot_is_repaired_with_no_more_than_it_lacks(
    source: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(source, root) == 0
    [snapshot] = (root / "examples/shapes/snapshots").iterdir()
    (snapshot / "unet/config.json").write_text("{")
    (snapshot / "unet/evil.py").touch()
    fetched: list[str] = []
    real = Local.fetch
    monkeypatch.setattr(Local, "fetch", lambda self, *args: [fetched.append(args[1].path), real(self, *args)])
    capsys.readouterr()
    assert run(source, root) == 0
    assert said(capsys) == ["start", "resolved", "damaged", "plan", "progress", "hashing", "verified", "repaired", "done"]
    assert fetched == ["unet/config.json"]
    assert run(source, root, "--verify", "full") == 0
    assert said(capsys)[-2:] == ["present", "done"]


def test_plan_prints_every_file_and_writes_nothing(source: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, root, "--plan") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files = [line for line in lines if line["event"] == "file"]
    assert len(files) == 10 and all(len(line["sha256"]) == 64 for line in files)
    assert lines[-1]["total_bytes"] == sum(line["size"] for line in files)
    assert list(root.iterdir()) == []


def test_prune_after_publishing(source: Path, root: Path) -> None:
    for number in range(3):
        (source / "unet/config.json").write_text(json.dumps({"number": number}))
        assert run(source, root, "--prune", "2") == 0
    assert len(list((root / "examples/shapes/snapshots").iterdir())) == 2


def test_a_volume_that_is_not_mounted(source: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, root / "absent") == 13
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "is the volume mounted there?" in line["message"]


def test_usage_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert downloader.main(["--model-id", "x"]) == 2
    line = json.loads(capsys.readouterr().out)
    assert (line["code"], line["kind"]) == (2, "usage")


def test_a_signal_ends_it_with_its_status_and_no_staging(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the handler raised Terminated before this")

    monkeypatch.setattr(downloader, "fetch", fetch)
    assert run(source, root) == 143
    assert list((root / "examples/shapes/.staging").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    with pytest.raises(Terminated):
        downloader._terminate(signal.SIGTERM, None)
