"""A private place on the volume for one run, and what a dead run left behind.

    <root>/<org>/<name>/.staging/<host>-<pid>-<random>/
        lease        touched while the run lives
        snapshot/    becomes snapshots/<commit>[-<variant>] by one rename

No locks: flock means nothing on half of the shared file systems, and outlives its owner on the rest. A staging directory
whose lease nobody has touched for `STALE` seconds is garbage, and the next run removes it.
"""

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from downloader.errors import TransientError, VolumeError
from downloader.events import Events, gigabytes
from downloader.heartbeat import every

LEASE = 10.0  # seconds between touches
# Far longer than NFS caches attributes (60 s), or a live run would look dead from another node.
STALE = 300.0
# Bytes to leave: manifest, directories, and blocks rounded up.
_MARGIN = 8 * 2**20


class Staging:
    """`path` is the run's own directory; `snapshot`, inside it, is the model in the making."""

    def __init__(self, parent: Path) -> None:
        self.path = parent / f"{socket.gethostname()[:63]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.snapshot = self.path / "snapshot"
        self._lease = self.path / "lease"

    @contextmanager
    def open(self) -> Iterator["Staging"]:
        """Make it, keep its lease fresh, and remove it whatever happens short of SIGKILL."""
        try:
            self.snapshot.mkdir(parents=True)
            self._lease.touch()
            with every(LEASE, self._touch):
                yield self
        finally:
            remove_tree(self.path)

    def _touch(self) -> None:
        # Gone if another run took us for dead; then the fetch fails too, and says so.
        with suppress(OSError):
            os.utime(self._lease)

    def remove_stale(self, events: Events) -> None:
        """Remove the staging directories of runs that no longer live."""
        for other in self._others():
            if self._age(other) > STALE:
                events.emit("stale", f"removing {other.name}, left behind by a run that died", staging=other.name)
                remove_tree(other)

    def require(self, size: int) -> None:
        """Raise unless `size` bytes fit on the volume. A quota shows only in writing: see `errors.from_volume`."""
        volume = os.statvfs(self.path)
        free = volume.f_bavail * volume.f_frsize
        if size + _MARGIN <= free:
            return
        lacking = f"{gigabytes(size)} do not fit in the {gigabytes(free)} that are free on the volume"
        held = sum(tree_size(other) for other in self._others())
        if size + _MARGIN <= free + held:
            raise TransientError(
                f"{lacking}; another run's staging holds {gigabytes(held)}, which it publishes, or loses {STALE:.0f} s "
                "after it dies"
            )
        raise VolumeError(f"{lacking}; give the claim more storage, or free some with --prune")

    def _others(self) -> list[Path]:
        return [other for other in self.path.parent.iterdir() if other != self.path]

    def _age(self, other: Path) -> float:
        """Seconds since `other` gave a sign of life, by the volume's own clock: those of two nodes may differ."""
        self._touch()
        try:
            lease = other / "lease"
            return self._lease.stat().st_mtime - (lease if lease.exists() else other).stat().st_mtime
        except FileNotFoundError:
            return 0.0


def remove_tree(path: Path) -> None:
    """Remove a directory that other threads may still be writing into."""
    for _ in range(5):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return


def tree_size(path: Path) -> int:
    """Bytes of all files below `path`, whatever comes and goes meanwhile."""
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total
