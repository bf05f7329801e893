"""Make a verified staging directory visible, all at once. This is the contract with the predictor:

    <root>/<org>/<name>/
        refs/<revision>                    text "<commit>[-<variant>]\\n"; replaced atomically, written last. `revision` is
                                           URL-quoted, `/` too, so it is one path segment: refs/pr/1 → refs%2Fpr%2F1
        snapshots/<commit>[-<variant>]/    appears by one rename, complete and verified; then it changes no more
            model_index.json  unet/…       safetensors, configurations and vocabularies; regular files only
            manifest.json
        .staging/…                         not for readers

`commit` is 40 lower-case hex digits; `variant` is letters, digits and `_`. Every file is readable by any uid. The manifest
is one JSON object, and lists every file in the snapshot but itself, sorted by path:

    {"format": 1,
     "repo": "org/name",
     "commit": "<40 hex digits>",
     "variant": "fp16" | null,
     "pipeline": "StableDiffusionPipeline",
     "files": [{"path": "unet/config.json", "size": 123, "sha256": "<64 hex digits>"}, …]}

One thing changes a published snapshot: a run that finds it damaged (a file lost, cut short or added) puts single good
files in place of the bad ones, each by a rename, so that a snapshot only ever gets better.
"""

import errno
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from downloader.errors import TransientError
from downloader.events import Events
from downloader.plan import File
from downloader.staging import Staging, remove_tree
from downloader.verify import Fault, Report, verify

MANIFEST = "manifest.json"
_FORMAT = 1
_ALSO_THERE = frozenset({MANIFEST})


@dataclass(frozen=True)
class Manifest:
    repo: str
    commit: str
    variant: str | None
    pipeline: str
    files: tuple[File, ...]  # sorted by path, each with its sha256

    def to_json(self) -> str:
        files = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in self.files]
        head = {"format": _FORMAT, "repo": self.repo, "commit": self.commit, "variant": self.variant}
        return json.dumps({**head, "pipeline": self.pipeline, "files": files}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Raises ValueError, KeyError or TypeError if `text` is not a manifest."""
        value = json.loads(text)
        if value["format"] != _FORMAT:
            raise ValueError(f"format {value['format']!r}, not {_FORMAT}")
        files = tuple(File(str(file["path"]), int(file["size"]), str(file["sha256"])) for file in value["files"])
        if not files:
            raise ValueError("it lists no files")
        return cls(value["repo"], value["commit"], value["variant"], value["pipeline"], files)


@dataclass(frozen=True)
class Shelf:
    """The place of one model on the volume."""

    path: Path  # <root>/<org>/<name>

    @property
    def staging(self) -> Path:
        return self.path / ".staging"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    def snapshot(self, commit: str, variant: str | None) -> Path:
        return self.snapshots / (f"{commit}-{variant}" if variant else commit)

    def ref(self, revision: str) -> Path:
        return self.path / "refs" / quote(revision, safe="")

    def refs(self) -> dict[str, str]:
        """What each ref names; a file that is no ref is left out."""
        found = {path.name: _read_ref(path) for path in (self.path / "refs").glob("*")}
        return {name: value for name, value in found.items() if value}


def inspect(snapshot: Path, repo: str, *, full: bool) -> Report:
    """Check a published snapshot against its own manifest. A manifest that is missing or foreign is a fault."""
    try:
        manifest = Manifest.from_json((snapshot / MANIFEST).read_text())
    except FileNotFoundError:
        return Report((), (Fault(MANIFEST, "missing"),), ())
    except (ValueError, KeyError, TypeError) as error:
        return Report((), (Fault(MANIFEST, f"not a manifest: {error}"),), ())
    name = f"{manifest.commit}-{manifest.variant}" if manifest.variant else manifest.commit
    if (manifest.repo, name) != (repo, snapshot.name):
        return Report((), (Fault(MANIFEST, f"is that of {manifest.repo} {name}"),), ())
    return verify(snapshot, manifest.files, full=full, ignore=_ALSO_THERE)


def publish(staging: Staging, snapshot: Path, manifest: Manifest) -> bool:
    """Move the staged files to `snapshot`, durably and in one step.

    Returns False if another run was faster; its snapshot and our staging are then both as they were.
    """
    remove_tree(staging.snapshot / ".cache")
    (staging.snapshot / MANIFEST).write_text(manifest.to_json())
    _sync_tree(staging.snapshot)
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    try:
        staging.snapshot.rename(snapshot)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    _sync_entry(snapshot)
    return True


def repair(staging: Staging, snapshot: Path, manifest: Manifest) -> None:
    """Replace what is bad in `snapshot` by staged files, and remove what `manifest` does not list."""
    report = verify(snapshot, manifest.files, full=True, ignore=_ALSO_THERE)
    for path in report.unlisted:
        (snapshot / path).unlink(missing_ok=True)
    for fault in report.faults:
        _replace(staging.snapshot / fault.path, snapshot / fault.path)
    fresh = staging.path / MANIFEST
    fresh.write_text(manifest.to_json())
    _replace(fresh, snapshot / MANIFEST)


def write_ref(staging: Staging, shelf: Shelf, revision: str, snapshot: Path) -> bool:
    """Let `revision` name `snapshot`. Returns False if it does already."""
    ref = shelf.ref(revision)
    changed = _read_ref(ref) != snapshot.name
    if changed:
        fresh = staging.path / "ref"
        fresh.write_text(f"{snapshot.name}\n")
        _replace(fresh, ref)
    # The other half is in `prune`: it moves first and reads the refs again, we write first and look again.
    if not (snapshot / MANIFEST).exists():
        raise TransientError(f"another run pruned {snapshot.name} meanwhile")
    return changed


def prune(staging: Staging, shelf: Shelf, keep: int, events: Events) -> None:
    """Delete all but the `keep` newest snapshots and those a ref names. A reader sees each go whole, by one rename."""
    newest_first = sorted(shelf.snapshots.iterdir(), key=_published, reverse=True)
    for snapshot in newest_first[keep:]:
        if snapshot.name in shelf.refs().values():
            continue
        condemned = staging.path / snapshot.name
        try:
            snapshot.rename(condemned)
        except FileNotFoundError:
            continue  # another run was faster
        if snapshot.name in shelf.refs().values():
            condemned.rename(snapshot)
            continue
        remove_tree(condemned)
        events.emit("pruned", f"removed snapshot {snapshot.name}", snapshot=snapshot.name)


def _published(snapshot: Path) -> int:
    manifest = snapshot / MANIFEST
    try:
        return (manifest if manifest.exists() else snapshot).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _read_ref(path: Path) -> str | None:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[0-9a-f]{40}(-\w+)?", text, re.ASCII) else None


def _replace(fresh: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _sync(fresh)
    if target.is_dir() and not target.is_symlink():
        remove_tree(target)
    fresh.replace(target)
    _sync_entry(target)


def _sync_tree(directory: Path) -> None:
    for parent, _, names in os.walk(directory, topdown=False):
        for name in names:
            _sync(Path(parent) / name)
        _sync(Path(parent))


def _sync_entry(path: Path) -> None:
    """Make the name durable, and that of its directory, which may be new too."""
    _sync(path.parent)
    _sync(path.parent.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory; their rename is as durable as it gets.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
