"""The Hub as a source, and the one place where its exceptions become ours.

The conversation is that of `huggingface_hub.snapshot_download`: the revision's commit, the tree's listing, then HEAD and
GET of each file. The first two use huggingface_hub's session directly: its `HfApi` never retries the one, retries the
other for half a minute whatever we want, and waits for ever on a server that has gone silent.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from downloader import settings
from downloader.errors import (
    AccessDenied,
    DownloadError,
    IntegrityError,
    NotFound,
    PlanRefused,
    TransientError,
    UsageError,
    from_volume,
)
from downloader.events import Events
from downloader.plan import File, Plan, make_plan
from downloader.verify import blob_sha1, sha256_of

settings.quiet_the_hub()

import httpx2  # noqa: E402  after quiet_the_hub: huggingface_hub reads its environment once, at import
from huggingface_hub import constants, errors, get_session, get_token, hf_hub_download, hf_hub_url  # noqa: E402
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, parse_ratelimit_headers  # type: ignore[attr-defined]  # noqa: E402

_TIMEOUT = 20.0  # seconds without a byte, for listings
_READS = 4  # of a small file whose hash is wrong
_LONGEST_WAIT = 300.0  # seconds: the Hub's rate limits count in windows of five minutes


class Hub:
    def __init__(self, repo: str, revision: str, variant: str | None, events: Events) -> None:
        self._repo, self._revision, self._variant = repo, revision, variant
        self._token = _token()
        if self._token:
            events.keep_secret(self._token)
        events.capture_libraries()

    def resolve(self) -> str:
        if _is_commit(self._revision):
            return self._revision
        with self._errors():
            answer = self._get(f"{self._api}/revision/{quote(self._revision, safe='')}").json()
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not _is_commit(commit):
            raise TransientError(_no_hub("its answer names no commit"))
        return commit

    def plan(self, commit: str) -> Plan:
        plan = make_plan(self._listing(commit), lambda file: self._read(commit, file), self._variant)
        for file in plan.files:
            if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
                raise PlanRefused(f"{file.path} has {file.size} bytes; the Hub sends no more than 50 GB over HTTP")
        return plan

    def fetch(self, commit: str, file: File, directory: Path) -> None:
        with self._errors():
            hf_hub_download(
                self._repo,
                file.path,
                revision=commit,
                local_dir=directory,
                # An empty cache of our own: another one may hold an unverified file, or lie on a read-only disk.
                cache_dir=directory / ".cache" / "hub",
                token=self._token or False,
            )

    def discard(self, file: File, directory: Path) -> None:
        (directory / file.path).unlink(missing_ok=True)
        # While this is there huggingface_hub takes the file for good without asking.
        (directory / ".cache/huggingface/download" / f"{file.path}.metadata").unlink(missing_ok=True)

    @property
    def _api(self) -> str:
        return f"{constants.ENDPOINT}/api/models/{self._repo}"

    def _listing(self, commit: str) -> list[File]:
        entries: list[File] = []
        url: str | None = f"{self._api}/tree/{commit}?recursive=true&expand=false"
        with self._errors():
            while url:
                page = self._get(url)
                entries += [_entry(item) for item in page.json() if item["type"] == "file"]
                url = page.links.get("next", {}).get("url")
        return entries

    def _read(self, commit: str, file: File) -> bytes:
        for _ in range(_READS):
            with self._errors():
                content = self._get(hf_hub_url(self._repo, file.path, revision=commit)).content
            if file.sha256 == sha256_of(content) if file.sha256 else file.blob_sha1 == blob_sha1(content):
                return content
        raise IntegrityError(f"{file.path}: still not what the listing says after {_READS} reads")

    def _get(self, url: str) -> httpx2.Response:
        # A mirror's `next` link may lead to another host: the token stays with the one it is for.
        ours = url.startswith(f"{constants.ENDPOINT}/")
        headers = build_hf_headers(token=(self._token or False) if ours else False)
        response = get_session().get(url, headers=headers, timeout=_TIMEOUT)
        hf_raise_for_status(response)
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> DownloadError:
        # "Not found locally" hides why the Hub could not be asked.
        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if isinstance(error, errors.HfHubHTTPError):
            return self._refused(error)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return UsageError("HF_HUB_OFFLINE is set: unset it, or take the model from a directory with --source")
        if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL | httpx2.LocalProtocolError):
            # Not its own text: it may quote the header that holds the token.
            return UsageError(f"HF_ENDPOINT {constants.ENDPOINT!r} cannot be asked: expected https://host")
        if isinstance(error, httpx2.HTTPError):
            return TransientError(f"the connection failed: {type(error).__name__}: {error}")
        if isinstance(error, OSError) and error.errno is not None:
            return from_volume(error)
        if isinstance(error, OSError) and not isinstance(error, errors.FileMetadataError):
            return TransientError(str(error).partition("\n")[0])
        return TransientError(_no_hub(str(error).partition("\n")[0][:200]))

    def _refused(self, error: errors.HfHubHTTPError) -> DownloadError:
        status = error.response.status_code
        page = f"{constants.ENDPOINT}/{self._repo}"
        if isinstance(error, errors.GatedRepoError):
            return AccessDenied(
                f"{self._repo} is gated and the account of this token has no access: accept the terms at {page}"
                if self._token
                else f"{self._repo} is gated: accept the terms at {page} and give a token of that account in HF_TOKEN"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return NotFound(f"{self._repo} has no revision {self._revision!r}")
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return NotFound(f"{self._repo} lists a file that it does not have: {error.response.url.path}")
        answered = error.response.url
        if (answered.host, answered.port) != (httpx2.URL(constants.ENDPOINT).host, httpx2.URL(constants.ENDPOINT).port):
            # A CDN's signed URL runs out during a long transfer and then answers 403. Asking the Hub again mends it.
            return TransientError(f"{answered.host} answered {status}", _retry_after(error.response))
        if status == 401 and self._token:
            return AccessDenied("the Hub refuses this token (401): it is mistyped, revoked or expired")
        if status in (401, 404):
            hint = "the token may lack access to it" if self._token else "if it is private, give a token in HF_TOKEN"
            return NotFound(f"no repository {self._repo} at {constants.ENDPOINT}; {hint}")
        if status == 403:
            return AccessDenied(f"the Hub forbids reading {self._repo} (403): the token needs read access to it")
        return TransientError(f"the Hub answered {status}", _retry_after(error.response))


def _token() -> str | None:
    try:
        token = get_token()
    except (OSError, ValueError) as error:
        raise AccessDenied(f"HF_TOKEN_PATH {constants.HF_TOKEN_PATH} cannot be read: {type(error).__name__}") from error
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise AccessDenied("the token in HF_TOKEN or HF_TOKEN_PATH holds characters that no token has")
    return token


def _entry(item: dict[str, Any]) -> File:
    if lfs := item.get("lfs"):
        return File(item["path"], int(lfs["size"]), sha256=str(lfs["oid"]))
    return File(item["path"], int(item["size"]), blob_sha1=str(item["oid"]))


def _is_commit(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", text) is not None


def _no_hub(what: str) -> str:
    return f"{constants.ENDPOINT} does not answer as a Hub does; check HF_ENDPOINT and the proxy on the way: {what}"


def _retry_after(response: httpx2.Response) -> float:
    limit = parse_ratelimit_headers(response.headers)
    text = response.headers.get("Retry-After", "")
    seconds = limit.reset_in_seconds if limit and limit.remaining == 0 else int(text) if text.isdecimal() else 0
    return min(float(seconds), _LONGEST_WAIT)
