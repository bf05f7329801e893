"""argv → plan → fetch → verify → publish."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from downloader import settings as settings_module
from downloader.errors import DownloadError, Terminated, VolumeError, from_volume
from downloader.events import Events, duration, gigabytes
from downloader.fetch import Retry, fetch
from downloader.plan import Plan
from downloader.publish import Manifest, Shelf, inspect, prune, publish, repair, write_ref
from downloader.settings import Settings
from downloader.source import Source, open_source
from downloader.staging import Staging
from downloader.verify import verify


def main(argv: Sequence[str]) -> int:
    """Run once. Returns the exit status; `--help` raises SystemExit."""
    events = Events()
    termination_log: Path | None = Path("/dev/termination-log")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminate)
    # Readers run under other uids: a umask may take their right to write, never to read.
    os.umask(os.umask(0) & 0o022)
    try:
        settings = settings_module.parse(argv)
        termination_log = settings.termination_log
        _run(settings, events)
    except DownloadError as error:
        events.fail(error, termination_log)
        return error.code
    except OSError as error:
        translated = from_volume(error)
        events.fail(translated, termination_log)
        return translated.code
    except Terminated as terminated:
        events.warn("terminated", f"{terminated}: the staging directory is removed, nothing is half done")
        return terminated.status
    return 0


def _run(settings: Settings, events: Events) -> None:
    wanted = f"{settings.model_id} at {settings.revision}" + (f", {settings.variant}" if settings.variant else "")
    events.emit("start", f"{wanted}, from {settings.source or 'the Hub'}", verify=settings.verify)
    retry = Retry(settings.retries, settings.backoff, events)
    source = open_source(settings, events)
    if settings.plan:
        commit = _resolve(settings, source, retry)
        _print_plan(retry("planning", lambda: source.plan(commit)), commit, events)
        return
    # Made here it would be a directory of the container, and the model would be gone with it.
    if not settings.root.is_dir():
        raise VolumeError(f"--root {settings.root} is not a directory; is the volume mounted there?")
    shelf = Shelf(settings.root / settings.model_id)
    staging = Staging(shelf.staging)
    with staging.open():
        staging.remove_stale(events)
        commit = _resolve(settings, source, retry)
        snapshot = shelf.snapshot(commit, settings.variant)
        if not _is_there(snapshot, settings, events):
            _bring(settings, commit, snapshot, source, staging, retry)
        if write_ref(staging, shelf, settings.revision, snapshot):
            events.emit("ref", f"{settings.revision} now names {snapshot.name}", revision=settings.revision)
        if settings.prune is not None:
            prune(staging, shelf, settings.prune, events)
    events.emit("done", f"{settings.model_id} is ready at {snapshot}", snapshot=str(snapshot))


def _resolve(settings: Settings, source: Source, retry: Retry) -> str:
    commit = retry(f"resolving {settings.revision}", source.resolve)
    retry.events.emit("resolved", f"{settings.revision} is commit {commit}", commit=commit)
    return commit


def _is_there(snapshot: Path, settings: Settings, events: Events) -> bool:
    if not snapshot.exists():
        return False
    report = inspect(snapshot, settings.model_id, full=settings.verify == "full")
    if report.ok:
        checked = "every byte hashed" if settings.verify == "full" else "presence and sizes checked"
        events.emit("present", f"already there: {len(report.files)} files, {checked}; nothing to fetch")
        return True
    faults = [*map(str, report.faults), *(f"{path}: not listed" for path in report.unlisted)]
    events.warn("damaged", f"{snapshot.name} is damaged and will be repaired: {'; '.join(faults)}")
    return False


def _bring(settings: Settings, commit: str, snapshot: Path, source: Source, staging: Staging, retry: Retry) -> None:
    """Fetch what `snapshot` lacks, all of it or what is damaged, and publish."""
    events = retry.events
    plan = retry("planning", lambda: source.plan(commit))
    events.emit("plan", _totals(plan), files=len(plan.files), total_bytes=plan.size, pipeline=plan.pipeline)
    kept = verify(snapshot, plan.files, full=True).files
    paths = {file.path for file in kept}
    missing = [file for file in plan.files if file.path not in paths]
    staging.require(sum(file.size for file in missing))
    began = time.monotonic()
    fetched = fetch(source, commit, missing, staging.snapshot, retry)
    size = sum(file.size for file in fetched)
    took = duration(round(time.monotonic() - began))
    events.emit("verified", f"{len(fetched)} files, {gigabytes(size)}, fetched and hashed in {took}", bytes=size)
    files = tuple(sorted((*kept, *fetched), key=lambda file: file.path))
    manifest = Manifest(settings.model_id, commit, settings.variant, plan.pipeline, files)
    if publish(staging, snapshot, manifest):
        events.emit("published", f"{snapshot.name} is complete", snapshot=str(snapshot))
    elif inspect(snapshot, settings.model_id, full=True).ok:
        events.emit("present", f"another run published {snapshot.name} meanwhile, and it is sound; ours is dropped")
    else:
        repair(staging, snapshot, manifest)
        events.emit("repaired", f"{snapshot.name} is sound again", snapshot=str(snapshot))


def _print_plan(plan: Plan, commit: str, events: Events) -> None:
    for file in plan.files:
        known = f"sha256 {file.sha256}" if file.sha256 else f"git sha1 {file.blob_sha1}"
        events.emit(
            "file",
            f"{file.path}  {gigabytes(file.size)}  {known}",
            path=file.path,
            size=file.size,
            sha256=file.sha256,
            blob_sha1=file.blob_sha1,
        )
    events.emit("plan", _totals(plan), files=len(plan.files), total_bytes=plan.size, commit=commit)


def _totals(plan: Plan) -> str:
    return f"{plan.pipeline}: {len(plan.files)} files, {gigabytes(plan.size)}"


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # Once is enough: a second one must not interrupt the cleaning.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise Terminated(number)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # Not sys.exit: a fetch thread may be in the middle of gigabytes, and nothing waits for it.
    os._exit(status)
