import hashlib
from pathlib import Path

import pytest

from downloader.plan import File
from downloader.verify import blob_sha1, digests, verify

CONTENT = b"what the Hub has"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_bytes(CONTENT)
    return tmp_path


def test_blob_sha1_is_gits() -> None:
    assert blob_sha1(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_digests_of_a_file(directory: Path) -> None:
    path = directory / "unet/config.json"
    assert digests(path) == (SHA256, None)
    assert digests(path, len(CONTENT)) == (SHA256, blob_sha1(CONTENT))


@pytest.mark.parametrize("hashes", [{"sha256": SHA256}, {"blob_sha1": blob_sha1(CONTENT)}])
def test_a_good_file_comes_back_with_its_sha256(directory: Path, hashes: dict[str, str]) -> None:
    report = verify(directory, [File("unet/config.json", len(CONTENT), **hashes)], full=True)
    assert report.ok
    assert report.files[0].sha256 == SHA256


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (File("unet/absent", 1), "missing"),
        (File("unet/config.json/x", 1), "missing"),
        (File("unet", 1), "not a regular file"),
        (File("unet/config.json", 3), "has 16 bytes, not 3"),
        (File("unet/config.json", len(CONTENT), sha256="0" * 64), "sha256 is"),
        (File("unet/config.json", len(CONTENT), blob_sha1="0" * 40), "git sha1 is"),
    ],
)
def test_faults_say_what_is_wrong(directory: Path, file: File, says: str) -> None:
    report = verify(directory, [file], full=True)
    assert not report.ok
    assert says in str(report.faults[0])


def test_size_alone_hashes_nothing(directory: Path) -> None:
    assert verify(directory, [File("unet/config.json", len(CONTENT), sha256="0" * 64)], full=False).ok


def test_a_symlink_is_not_a_file_even_if_its_target_is_right(directory: Path) -> None:
    (directory / "link").symlink_to("unet/config.json")
    assert verify(directory, [File("link", len(CONTENT), sha256=SHA256)], full=True).faults


def test_what_nobody_lists_is_reported(directory: Path) -> None:
    (directory / "unet/evil.py").touch()
    (directory / "away").symlink_to("/etc")
    (directory / "manifest.json").touch()
    listed = [File("unet/config.json", len(CONTENT))]
    report = verify(directory, listed, full=False, ignore=frozenset({"manifest.json"}))
    assert report.unlisted == ("away", "unet/evil.py")
    assert not report.ok
