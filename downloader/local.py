"""A diffusers directory on this machine as a source: air-gapped clusters, and the demo."""

import hashlib
import shutil
from pathlib import Path

from downloader.errors import NotFound, PlanRefused, TransientError
from downloader.plan import File, Plan, make_plan
from downloader.verify import digests


class Local:
    """The same rules as for the Hub. `commit` is made of the content, so equal content is the same snapshot."""

    def __init__(self, directory: Path, variant: str | None) -> None:
        self._directory = directory
        self._variant = variant
        self._plan: Plan | None = None

    def resolve(self) -> str:
        """sha256 over the sorted lines `<path> <sha256>` of the planned files, its first 40 hex digits."""
        try:
            plan = make_plan(self._listing(), self._read, self._variant)
            files = tuple(File(file.path, file.size, digests(self._inside(file))[0]) for file in plan.files)
        except OSError as error:
            raise _unreadable(error) from error
        self._plan = Plan(plan.pipeline, files)
        lines = sorted(f"{file.path} {file.sha256}\n" for file in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:40]

    def plan(self, commit: str) -> Plan:
        if self._plan is None:
            self.resolve()
        assert self._plan is not None
        return self._plan

    def fetch(self, commit: str, file: File, directory: Path) -> None:
        target = directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._inside(file), target)

    def discard(self, file: File, directory: Path) -> None:
        (directory / file.path).unlink(missing_ok=True)

    def _listing(self) -> list[File]:
        if not self._directory.is_dir():
            raise NotFound(f"--source {self._directory} is not a directory")
        # The root and one level of component directories: a plan uses nothing deeper.
        top = sorted(self._directory.iterdir())
        paths = [path for path in top if path.is_file()]
        paths += [path for child in top if child.is_dir() for path in sorted(child.iterdir()) if path.is_file()]
        return [File(path.relative_to(self._directory).as_posix(), path.stat().st_size) for path in paths]

    def _read(self, file: File) -> bytes:
        return self._inside(file).read_bytes()

    def _inside(self, file: File) -> Path:
        path = self._directory / file.path
        if not path.resolve().is_relative_to(self._directory.resolve()):
            raise PlanRefused(f"{file.path} is a symlink that leaves {self._directory}; copy the directory with cp -rL")
        return path


def _unreadable(error: OSError) -> NotFound | TransientError:
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return NotFound(f"cannot read {error.filename}: {error.strerror}")
    return TransientError(f"reading the source failed: {error}")
