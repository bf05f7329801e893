import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from downloader.errors import TransientError
from downloader.events import Events
from downloader.plan import File
from downloader.publish import MANIFEST, Manifest, Shelf, inspect, prune, publish, repair, write_ref
from downloader.staging import Staging

COMMITS = [digit * 40 for digit in "abcdef"]
CONTENTS = {"model_index.json": b"{}", "unet/config.json": b"[]", "unet/w.safetensors": b"weights"}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "org/name")


@pytest.fixture
def staging(shelf: Shelf) -> Iterator[Staging]:
    with Staging(shelf.staging).open() as staging:
        yield staging


def manifest(commit: str = COMMITS[0], variant: str | None = None) -> Manifest:
    files = tuple(File(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in sorted(CONTENTS.items()))
    return Manifest("org/name", commit, variant, "DDPMPipeline", files)


def stage(staging: Staging) -> None:
    for path, content in CONTENTS.items():
        (staging.snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (staging.snapshot / path).write_bytes(content)


def published(shelf: Shelf, commit: str = COMMITS[0]) -> Path:
    """A snapshot as another run would have left it."""
    snapshot = shelf.snapshot(commit, None)
    with Staging(shelf.staging).open() as other:
        stage(other)
        assert publish(other, snapshot, manifest(commit))
    return snapshot


def test_the_manifest_is_what_the_predictor_was_promised(shelf: Shelf, staging: Staging) -> None:
    stage(staging)
    snapshot = shelf.snapshot(COMMITS[0], "fp16")
    assert publish(staging, snapshot, manifest(variant="fp16"))
    assert snapshot == shelf.path / f"snapshots/{COMMITS[0]}-fp16"
    assert json.loads((snapshot / MANIFEST).read_text()) == {
        "format": 1,
        "repo": "org/name",
        "commit": COMMITS[0],
        "variant": "fp16",
        "pipeline": "DDPMPipeline",
        "files": [
            {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for path, data in sorted(CONTENTS.items())
        ],
    }
    assert inspect(snapshot, "org/name", full=True).ok


def test_publish_drops_the_bookkeeping_of_huggingface_hub(shelf: Shelf, staging: Staging) -> None:
    stage(staging)
    (staging.snapshot / ".cache/huggingface/download").mkdir(parents=True)
    (staging.snapshot / ".cache/huggingface/download/x.metadata").touch()
    snapshot = shelf.snapshot(COMMITS[0], None)
    publish(staging, snapshot, manifest())
    assert sorted(path.name for path in snapshot.iterdir()) == [MANIFEST, "model_index.json", "unet"]


def test_everything_is_on_disk_before_the_rename(shelf: Shelf, staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def rename(source: str, target: str) -> None:
        wanted = [staging.snapshot, staging.snapshot / "unet", staging.snapshot / MANIFEST]
        wanted += [staging.snapshot / path for path in CONTENTS]
        assert set(map(str, wanted)) == set(synced)
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    stage(staging)
    publish(staging, shelf.snapshot(COMMITS[0], None), manifest())
    assert synced[-2:] == [str(shelf.snapshots), str(shelf.path)]


@pytest.mark.parametrize("number", [errno.ENOTEMPTY, errno.EEXIST])
def test_the_second_of_two_runs_leaves_the_first_ones_snapshot(
    shelf: Shelf, staging: Staging, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    snapshot = published(shelf)
    before = (snapshot / MANIFEST).stat().st_ino
    stage(staging)

    def rename(*_: object) -> None:
        raise OSError(number, "there")

    if number == errno.EEXIST:
        monkeypatch.setattr(os, "rename", rename)
    assert not publish(staging, snapshot, manifest())
    assert (snapshot / MANIFEST).stat().st_ino == before
    assert staging.snapshot.exists()


def test_other_failures_of_the_rename_are_failures(shelf: Shelf, staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "rename", rename)
    stage(staging)
    with pytest.raises(OSError, match="broken"):
        publish(staging, shelf.snapshot(COMMITS[0], None), manifest())


def test_a_file_system_that_cannot_sync_directories(shelf: Shelf, staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "no fsync here")

    monkeypatch.setattr(os, "fsync", fsync)
    stage(staging)
    assert publish(staging, shelf.snapshot(COMMITS[0], None), manifest())


DAMAGE = {
    "cut": lambda snapshot: (snapshot / "unet/w.safetensors").write_bytes(b"wei"),
    "lost": lambda snapshot: (snapshot / "unet/config.json").unlink(),
    "added": lambda snapshot: (snapshot / "unet/evil.py").touch(),
    "linked": lambda snapshot: [(snapshot / "unet/config.json").unlink(), (snapshot / "unet/config.json").symlink_to("/x")],
    "turned": lambda snapshot: [(snapshot / "unet/config.json").unlink(), (snapshot / "unet/config.json").mkdir()],
    "no manifest": lambda snapshot: (snapshot / MANIFEST).unlink(),
    "no JSON": lambda snapshot: (snapshot / MANIFEST).write_text("{"),
    "empty": lambda snapshot: (snapshot / MANIFEST).write_text('{"format": 1, "files": []}'),
    "newer": lambda snapshot: (snapshot / MANIFEST).write_text('{"format": 2}'),
    "foreign": lambda snapshot: (snapshot / MANIFEST).write_text(manifest(COMMITS[1]).to_json()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_by_size_alone_and_repaired(shelf: Shelf, staging: Staging, damage: str) -> None:
    snapshot = published(shelf)
    DAMAGE[damage](snapshot)
    assert not inspect(snapshot, "org/name", full=False).ok
    stage(staging)
    repair(staging, snapshot, manifest())
    assert inspect(snapshot, "org/name", full=True).ok


def test_a_flipped_bit_is_seen_by_hashing(shelf: Shelf, staging: Staging) -> None:
    snapshot = published(shelf)
    (snapshot / "unet/w.safetensors").write_bytes(b"weightz")
    assert inspect(snapshot, "org/name", full=False).ok
    assert not inspect(snapshot, "org/name", full=True).ok


def test_a_repair_touches_only_what_is_bad(shelf: Shelf, staging: Staging) -> None:
    snapshot = published(shelf)
    (snapshot / "unet/w.safetensors").write_bytes(b"wei")
    kept = (snapshot / "unet/config.json").stat().st_ino
    (staging.snapshot / "unet").mkdir()
    (staging.snapshot / "unet/w.safetensors").write_bytes(CONTENTS["unet/w.safetensors"])
    repair(staging, snapshot, manifest())
    assert (snapshot / "unet/config.json").stat().st_ino == kept
    assert inspect(snapshot, "org/name", full=True).ok


@pytest.mark.parametrize(
    ("revision", "name"), [("main", "main"), ("refs/pr/1", "refs%2Fpr%2F1"), ("v1.0+x", "v1.0%2Bx"), (COMMITS[0],) * 2]
)
def test_a_ref_is_one_file_whatever_the_revision(shelf: Shelf, staging: Staging, revision: str, name: str) -> None:
    snapshot = published(shelf)
    assert write_ref(staging, shelf, revision, snapshot)
    assert (shelf.path / "refs" / name).read_text() == f"{COMMITS[0]}\n"
    assert not write_ref(staging, shelf, revision, snapshot)
    assert shelf.refs() == {name: COMMITS[0]}


def test_a_ref_moves_at_once_and_a_broken_one_is_replaced(shelf: Shelf, staging: Staging) -> None:
    first, second = published(shelf), published(shelf, COMMITS[1])
    write_ref(staging, shelf, "main", first)
    write_ref(staging, shelf, "main", second)
    assert shelf.refs() == {"main": COMMITS[1]}
    shelf.ref("main").write_bytes(b"\xff")
    assert shelf.refs() == {}
    write_ref(staging, shelf, "main", second)
    assert shelf.refs() == {"main": COMMITS[1]}
    assert [path.name for path in (shelf.path / "refs").iterdir()] == ["main"]


def test_a_ref_to_a_snapshot_pruned_meanwhile_is_not_called_done(shelf: Shelf, staging: Staging) -> None:
    with pytest.raises(TransientError, match="pruned"):
        write_ref(staging, shelf, "main", shelf.snapshot(COMMITS[0], None))


def aged(shelf: Shelf) -> None:
    """Six snapshots, each a day younger than the one before."""
    for day, commit in enumerate(COMMITS):
        os.utime(published(shelf, commit) / MANIFEST, (day * 86400, day * 86400))


def test_prune_keeps_the_newest_and_what_a_ref_names(shelf: Shelf, staging: Staging) -> None:
    aged(shelf)
    write_ref(staging, shelf, "v1", shelf.snapshot(COMMITS[1], None))
    stream = io.StringIO()
    prune(staging, shelf, 2, Events(stream))
    assert sorted(path.name[0] for path in shelf.snapshots.iterdir()) == ["b", "e", "f"]
    assert stream.getvalue().count('"pruned"') == 3
    prune(staging, shelf, 9, Events(stream))
    assert len(list(shelf.snapshots.iterdir())) == 3


def test_prune_puts_back_what_a_ref_named_meanwhile(shelf: Shelf, staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    aged(shelf)
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        real(source, target)
        if source == shelf.snapshot(COMMITS[0], None):
            shelf.ref("late").parent.mkdir(exist_ok=True)
            shelf.ref("late").write_text(f"{COMMITS[0]}\n")

    monkeypatch.setattr(os, "rename", rename)
    prune(staging, shelf, 1, Events(io.StringIO()))
    assert sorted(path.name[0] for path in shelf.snapshots.iterdir()) == ["a", "f"]
