"""Where a model comes from: the Hub, or a local directory. One small shape for both."""

from pathlib import Path
from typing import Protocol

from downloader.events import Events
from downloader.plan import File, Plan
from downloader.settings import Settings


class Source(Protocol):
    """Every method may raise a `DownloadError`; a `TransientError` is worth calling again for."""

    def resolve(self) -> str:
        """The commit the revision means now: 40 hex digits."""

    def plan(self, commit: str) -> Plan:
        """The exact files to take at `commit`."""

    def fetch(self, commit: str, file: File, directory: Path) -> None:
        """Put `file` at `directory/file.path`, not yet verified. What an earlier call left there must be gone."""

    def discard(self, file: File, directory: Path) -> None:
        """Remove a fetched file, with whatever would make the next `fetch` believe it is still good."""


def open_source(settings: Settings, events: Events) -> Source:
    # huggingface_hub takes half a second to import and has no business in an air-gapped run.
    if settings.source is not None:
        from downloader.local import Local

        return Local(settings.source, settings.variant)
    from downloader.hub import Hub

    return Hub(settings.model_id, settings.revision, settings.variant, events)
