"""Is what lies on disk what was planned? Pure: it reads, reports, and changes nothing."""

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from downloader.plan import File

_BLOCK = 2**20


@dataclass(frozen=True)
class Fault:
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """`files` are those found good, each with its sha256 if the check was a full one; `faults` is all the rest."""

    files: tuple[File, ...]
    faults: tuple[Fault, ...]
    unlisted: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.faults and not self.unlisted


def verify(directory: Path, files: Iterable[File], *, full: bool, ignore: frozenset[str] = frozenset()) -> Report:
    """Compare `directory` with `files`.

    Args:
        full: hash every byte (about 1.6 GB/s on one core), not only presence and size.
        ignore: paths that may be there though no file names them.
    """
    good, faults = [], []
    listed = set(ignore)
    for file in files:
        listed.add(file.path)
        reason, checked = _check(directory / file.path, file, full)
        if reason:
            faults.append(Fault(file.path, reason))
        else:
            good.append(checked)
    unlisted = tuple(sorted(path for path in _tree(directory) if path not in listed))
    return Report(tuple(good), tuple(faults), unlisted)


def _check(path: Path, file: File, full: bool) -> tuple[str, File]:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return "missing", file
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file", file
    if status.st_size != file.size:
        return f"has {status.st_size} bytes, not {file.size}", file
    if not full:
        return "", file
    sha256, blob_sha1 = digests(path, status.st_size if file.sha256 is None else None)
    for kind, expected, found in (("sha256", file.sha256, sha256), ("git sha1", file.blob_sha1, blob_sha1)):
        if expected is not None and found is not None and expected != found:
            return f"{kind} is {found}, not {expected}", file
    return "", File(file.path, file.size, sha256, file.blob_sha1)


def digests(path: Path, blob_size: int | None = None) -> tuple[str, str | None]:
    """sha256 of a file; and git's blob sha1 if its size is given, since the size comes first in that hash."""
    sha256 = hashlib.sha256()
    blob = None if blob_size is None else hashlib.sha1(b"blob %d\0" % blob_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            sha256.update(block)
            if blob is not None:
                blob.update(block)
    return sha256.hexdigest(), None if blob is None else blob.hexdigest()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_sha1(content: bytes) -> str:
    """Git's name for `content`: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _tree(directory: Path) -> Iterable[str]:
    """Every path in `directory` that is not a directory, symlinks included and not followed."""
    for parent, directories, names in os.walk(directory):
        links = [name for name in directories if (Path(parent) / name).is_symlink()]
        for name in names + links:
            yield (Path(parent) / name).relative_to(directory).as_posix()
