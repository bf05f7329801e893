"""The real huggingface_hub over a scripted transport: what the Hub says, and what of it the operator is told."""

import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.utils._http import default_client_factory

from downloader.errors import (
    AccessDenied,
    DownloadError,
    IntegrityError,
    NotFound,
    PlanRefused,
    TransientError,
    UsageError,
    VolumeError,
)
from downloader.events import Events
from downloader.hub import Hub
from downloader.plan import File
from downloader.verify import blob_sha1

COMMIT = "c0ffee" + "0" * 34
Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No token of this machine, no waiting inside huggingface_hub, and its own client again afterwards."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "absent"))
    # What quiet_the_hub settles, unless something in this process imported huggingface_hub first.
    for switch in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
        monkeypatch.setattr(huggingface_hub.constants, switch, True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield
    huggingface_hub.set_client_factory(default_client_factory)


def hub(handler: Handler, revision: str = "main", variant: str | None = None) -> Hub:
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(handler), follow_redirects=True))
    return Hub("org/name", revision, variant, Events(io.StringIO()))


def answer(status: int, value: object = None, **headers: str) -> Handler:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda request: httpx2.Response(status, json=value or {}, headers=named, request=request)


def test_xet_and_telemetry_are_off_in_a_process_of_its_own() -> None:
    code = (
        "import downloader.hub, huggingface_hub as h; c = h.constants; import sys;"
        "sys.exit(not c.HF_HUB_DISABLE_XET or not c.HF_HUB_DISABLE_TELEMETRY or not c.HF_HUB_DISABLE_PROGRESS_BARS)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_resolve_asks_for_the_revision_as_one_segment() -> None:
    asked: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return answer(200, {"sha": COMMIT})(request)

    assert hub(handler, "refs/pr/1").resolve() == COMMIT
    assert asked == ["https://huggingface.co/api/models/org/name/revision/refs%2Fpr%2F1"]


def test_a_commit_needs_no_question() -> None:
    assert hub(answer(500), COMMIT).resolve() == COMMIT


# status, headers, token, class, words
REFUSALS: list[tuple[int, dict[str, str], str | None, type[DownloadError], str]] = [
    (401, {"X-Error-Message": "Invalid username or password."}, None, NotFound, "no repository org/name.*HF_TOKEN"),
    (404, {"X-Error-Code": "RepoNotFound"}, "hf_x", NotFound, "no repository org/name"),
    (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "hf_x", AccessDenied, "refuses this token"),
    (401, {}, "hf_x", AccessDenied, "mistyped, revoked or expired"),
    (401, {"X-Error-Code": "GatedRepo"}, None, AccessDenied, "accept the terms at https://huggingface.co/org/name.*HF_TOKEN"),
    (403, {"X-Error-Code": "GatedRepo"}, "hf_x", AccessDenied, "the account of this token has no access"),
    (403, {}, "hf_x", AccessDenied, "forbids"),
    (404, {"X-Error-Code": "RevisionNotFound"}, None, NotFound, "no revision 'main'"),
    (500, {}, None, TransientError, "the Hub answered 500"),
    (503, {}, None, TransientError, "the Hub answered 503"),
    (408, {}, None, TransientError, "the Hub answered 408"),
    (429, {}, None, TransientError, "the Hub answered 429"),
]


@pytest.mark.parametrize(("status", "headers", "token", "kind", "says"), REFUSALS)
def test_refusals_say_what_to_do(
    status: int,
    headers: dict[str, str],
    token: str | None,
    kind: type[DownloadError],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    source = hub(lambda request: httpx2.Response(status, headers=headers, request=request))
    for operation in (source.resolve, lambda: source.fetch(COMMIT, File("unet/config.json", 1), tmp_path)):
        with pytest.raises(kind, match=says) as caught:
            operation()
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=9;t=55'}, 0),
        ({"Retry-After": "86400"}, 300),
    ],
)
def test_how_long_the_hub_wants_us_to_wait(headers: dict[str, str], seconds: float) -> None:
    with pytest.raises(TransientError) as caught:
        hub(lambda request: httpx2.Response(429, headers=headers, request=request)).resolve()
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (httpx2.ReadError("reset"), TransientError, "ReadError: reset"),
        (httpx2.ConnectTimeout("slow"), TransientError, "ConnectTimeout: slow"),
        (httpx2.UnsupportedProtocol("no"), UsageError, "HF_ENDPOINT 'https://huggingface.co' cannot be asked"),
        (httpx2.LocalProtocolError("Illegal header value b'Bearer hf_x'"), UsageError, "HF_ENDPOINT"),
        (OSError(28, "No space left on device"), VolumeError, "no space left"),
        (OSError("Consistency check failed: size\nhelp"), TransientError, "Consistency check failed: size$"),
    ],
)
def test_exceptions_become_ours(error: Exception, kind: type[DownloadError], says: str) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        raise error

    with pytest.raises(kind, match=says) as caught:
        hub(handler).resolve()
    assert "Bearer" not in str(caught.value)


@pytest.mark.parametrize("value", [{"sha": "main"}, {}, ["sha"], {"sha": None}])
def test_an_answer_that_is_no_hubs(value: object) -> None:
    with pytest.raises(TransientError, match="does not answer as a Hub does; check HF_ENDPOINT and the proxy"):
        hub(answer(200, value)).resolve()
    with pytest.raises(TransientError, match="does not answer as a Hub does"):
        hub(lambda request: httpx2.Response(200, text="<html>log in</html>", request=request)).resolve()


def test_a_head_without_commit_is_no_hubs(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="does not answer as a Hub does.*X-Repo-Commit"):
        hub(answer(200, ETag='"x"')).fetch(COMMIT, File("unet/config.json", 2), tmp_path)


def test_offline_mode_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = hub(answer(200))
    huggingface_hub.set_client_factory(default_client_factory)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        source.resolve()


def test_a_cdn_that_refuses_is_worth_asking_the_hub_again(tmp_path: Path) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "cdn.example":
            return httpx2.Response(403, request=request)
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": '"e"', "X-Linked-Size": "3", "Location": "https://cdn.example/f"}
        return httpx2.Response(302, headers=headers, request=request)

    with pytest.raises(TransientError, match="cdn.example answered 403"):
        hub(handler).fetch(COMMIT, File("unet/x.safetensors", 3), tmp_path)


def test_an_unreadable_token_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path))
    with pytest.raises(AccessDenied, match="HF_TOKEN_PATH .* cannot be read"):
        hub(answer(200))


def test_a_token_no_header_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret\nX-Evil: 1")
    with pytest.raises(AccessDenied) as caught:
        hub(answer(200))
    assert "secret" not in str(caught.value)


class Site:
    """A repository of one component over two pages of the tree, the second on another host."""

    def __init__(self, size: int = 3) -> None:
        index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
        self.contents = {"model_index.json": json.dumps(index).encode(), "unet/config.json": b"{}"}
        self.sent = dict(self.contents)
        self.size = size
        self.authorized: dict[str, bool] = {}

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.authorized[request.url.host] = "authorization" in request.headers
        path = request.url.path
        if request.url.host == "mirror.example":
            weights = {"type": "file", "path": "unet/diffusion_pytorch_model.safetensors", "oid": "x", "size": 1}
            weights["lfs"] = {"oid": hashlib.sha256(b"abc").hexdigest(), "size": self.size, "pointerSize": 1}
            return httpx2.Response(200, json=[weights], request=request)
        if "/tree/" in path:
            small = [
                {"type": "file", "path": path, "oid": blob_sha1(content), "size": len(content)}
                for path, content in self.contents.items()
            ]
            headers = {"Link": '<https://mirror.example/page2>; rel="next"'}
            return httpx2.Response(200, json=[{"type": "directory", "path": "unet"}, *small], headers=headers, request=request)
        content = self.sent[path.partition(f"/resolve/{COMMIT}/")[2]]
        return httpx2.Response(200, content=content, request=request)


def test_plan_reads_every_page_and_keeps_the_token_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    site = Site()
    plan = hub(site).plan(COMMIT)
    assert [file.path for file in plan.files] == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert (plan.files[0].sha256, plan.files[2].blob_sha1) == (None, None)
    assert plan.files[2].size == 3
    assert site.authorized == {"huggingface.co": True, "mirror.example": False}


def test_a_planning_file_is_verified_before_it_is_believed() -> None:
    site = Site()
    site.sent["model_index.json"] = b"{}"
    with pytest.raises(IntegrityError, match="model_index.json: still not what the listing says"):
        hub(site).plan(COMMIT)


def test_a_file_too_large_for_plain_http() -> None:
    with pytest.raises(PlanRefused, match="50 GB"):
        hub(Site(size=51 * 10**9)).plan(COMMIT)


def test_discard_also_removes_what_would_make_it_look_good(tmp_path: Path) -> None:
    content = b"{}"
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{blob_sha1(content)}"'}
    asked: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.method)
        return httpx2.Response(200, content=content, headers=headers, request=request)

    source, file = hub(handler), File("unet/config.json", 2)
    source.fetch(COMMIT, file, tmp_path)
    source.fetch(COMMIT, file, tmp_path)
    assert asked == ["HEAD", "GET"]  # why a bad file must be discarded
    source.discard(file, tmp_path)
    source.fetch(COMMIT, file, tmp_path)
    assert asked == ["HEAD", "GET"] * 2
    assert not (tmp_path / "unet/.cache").exists()
