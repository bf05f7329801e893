"""A small Hub on two local ports, for the real huggingface_hub to talk to: the API, and a CDN of another origin.

    with StandInHub() as hub:
        commit = hub.add("org/name", tiny_pipeline())
        hub.fail("body", "reset", path="unet/diffusion_pytorch_model.safetensors")
        subprocess.run(…, env={"HF_ENDPOINT": hub.endpoint})

It speaks what huggingface_hub 2.4 was seen to use: revision, tree with pages, HEAD and GET of /resolve/, a 302 to the CDN
for large files, ranges, and the headers of a repository on Xet. Every request is kept in `requests`.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import quote, unquote, urlsplit

Place = Literal["revision", "tree", "head", "body"]
Kind = Literal["reset", "truncate", "corrupt", "status", "no_commit", "hold"]
ALWAYS = 10**6


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # with the query
    origin: Literal["hub", "cdn"]
    authorization: str | None
    file: str | None = None  # the file of a GET that sends a body


@dataclass
class Fault:
    place: Place
    kind: Kind
    path: str | None  # None: any
    times: int
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    files: dict[str, bytes]
    commit: str
    revisions: dict[str, str]
    gated: bool
    sizes: dict[str, int]  # what the tree claims, where it differs

    def is_large(self, path: str) -> bool:
        return path.endswith((".safetensors", ".bin")) or len(self.files[path]) > 2**20


class StandInHub:
    def __init__(self, *, token: str = "hf_goodgoodgoodgoodgoodgood", page: int = 5, xet: bool = True) -> None:
        self.token = token
        self.xet = xet  # large files also say where they are on Xet, as most of the real ones do
        self.page = page  # entries a page of the tree
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], None] = lambda request: None
        self.held = threading.Event()  # set when a `hold` fault has a client waiting
        self._release = threading.Event()
        self._repositories: dict[str, Repository] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._servers = [self._server("hub"), self._server("cdn")]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def add(
        self,
        repo: str,
        files: dict[str, bytes],
        *,
        revision: str = "main",
        gated: bool = False,
        sizes: dict[str, int] | None = None,
    ) -> str:
        """Publish `files` at `revision` of `repo`; returns the commit."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(files.items()):
            digest.update(path.encode() + b"\0" + content)
        commit = digest.hexdigest()
        before = self._repositories.get(repo)
        revisions = {**(before.revisions if before else {}), revision: commit}
        self._repositories[repo] = Repository(files, commit, revisions, gated, sizes or {})
        return commit

    def fail(
        self, place: Place, kind: Kind, *, path: str | None = None, times: int = 1, status: int = 503, **headers: str
    ) -> None:
        """The next `times` requests of that sort go wrong. `headers`: with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._faults.append(Fault(place, kind, path, times, status, named))

    def bodies(self) -> list[str]:
        """The files whose bodies were sent so far, in order."""
        return [request.file for request in self.requests if request.file]

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _server(self, origin: Literal["hub", "cdn"]) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # One write an answer: unbuffered, Nagle's algorithm adds 40 ms to each.
            wbufsize = -1

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                hub._answer(self, origin)

            do_HEAD = do_GET

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that was killed

        return Server(("127.0.0.1", 0), Handler)

    def _answer(self, handler: BaseHTTPRequestHandler, origin: Literal["hub", "cdn"]) -> None:
        url = urlsplit(handler.path)
        repo, action, argument, path = self._route(url.path)
        sends_body = handler.command == "GET" and action in ("blob", "resolve")
        known = self._repositories.get(repo)
        redirected = action == "resolve" and known is not None and path in known.files and known.is_large(path)
        file = path if sends_body and not redirected else None
        with self._lock:
            authorization = handler.headers.get("authorization")
            request = Request(handler.command, handler.path, origin, authorization, file)
            self.requests.append(request)
        self.on_request(request)
        place: Place = "tree" if action == "tree" else "revision" if action == "revision" else "body" if file else "head"
        fault = self._next_fault(place, path)
        if fault and fault.kind == "status":
            return _send(handler, fault.status, {"error": "on purpose"}, fault.headers)
        if action == "blob":
            assert known is not None
            return self._send_file(handler, known.files[path], {}, fault)
        if refusal := self._refuse(handler, known, action, argument):
            return refusal()
        assert known is not None
        if action == "revision":
            return _send(handler, 200, {"id": repo, "sha": known.revisions.get(argument, argument)})
        if action == "tree":
            return self._send_tree(handler, repo, known, url.query)
        self._resolve(handler, repo, known, path, fault)

    def _route(self, path: str) -> tuple[str, str, str, str]:
        """(repository, action, revision, path of the file)."""
        patterns = {
            "revision": r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<argument>[^/]+)",
            "tree": r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<argument>[^/]+)",
            "resolve": r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<argument>[^/]+)/(?P<path>.+)",
            "blob": r"/blob/(?P<repo>[^/]+/[^/]+)/(?P<path>.+)",
        }
        for action, pattern in patterns.items():
            if match := re.fullmatch(pattern, path):
                found = {name: unquote(value) for name, value in match.groupdict().items()}
                return found["repo"], action, found.get("argument", ""), found.get("path", "")
        return "", "unknown", "", ""

    def _refuse(
        self, handler: BaseHTTPRequestHandler, known: Repository | None, action: str, argument: str
    ) -> Callable[[], None] | None:
        authorization = handler.headers.get("authorization")
        if authorization is not None and authorization != f"Bearer {self.token}":
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return lambda: _send(handler, 401, {"error": "Invalid credentials"}, message)
        if known is None:
            # An anonymous client learns no more than that.
            if authorization is None:
                return lambda: _send(handler, 401, {"error": "Invalid username or password."})
            return lambda: _send(handler, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if action == "unknown" or argument not in {known.commit, *known.revisions, *known.revisions.values()}:
            return lambda: _send(handler, 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        if known.gated and action == "resolve":
            status = 401 if authorization is None else 403
            return lambda: _send(handler, status, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        return None

    def _next_fault(self, place: Place, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.place == place and fault.times and fault.path in (None, path):
                    fault.times -= 1
                    return fault
        return None

    def _send_tree(self, handler: BaseHTTPRequestHandler, repo: str, known: Repository, query: str) -> None:
        start = int(query.rpartition("cursor=")[2]) if "cursor=" in query else 0
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "unet", "oid": "0" * 40, "size": 0}]
        for path, content in sorted(known.files.items()):
            size = known.sizes.get(path, len(content))
            entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": _blob_sha1(content)}
            if known.is_large(path):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
                if self.xet:
                    entry["xetHash"] = "a" * 64
            entries.append(entry)
        headers = {}
        if start + self.page < len(entries):
            next_url = f"{self.endpoint}/api/models/{repo}/tree/{known.commit}?recursive=true&cursor={start + self.page}"
            headers["Link"] = f'<{next_url}>; rel="next"'
        _send(handler, 200, entries[start : start + self.page], headers)

    def _resolve(self, handler: BaseHTTPRequestHandler, repo: str, known: Repository, path: str, fault: Fault | None) -> None:
        content = known.files.get(path)
        if content is None:
            return _send(handler, 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        headers = {} if fault and fault.kind == "no_commit" else {"X-Repo-Commit": known.commit}
        if not known.is_large(path):
            headers["ETag"] = f'"{_blob_sha1(content)}"'
            return self._send_file(handler, content, headers, fault)
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.cdn}/blob/{repo}/{quote(path)}?Signature=secret-of-the-cdn",
        }
        if self.xet:
            headers["X-Xet-Hash"] = "a" * 64
            headers["Link"] = f'<{self.endpoint}/api/models/{repo}/xet-read-token/{known.commit}>; rel="xet-auth"'
        _send(handler, 302, {}, headers)

    def _send_file(self, handler: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        if kind == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")):
            status, start = 206, int(match[1])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if kind not in ("reset", "truncate", "hold"):
            handler.wfile.write(body)
            return
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        if kind == "hold":
            self.held.set()
            self._release.wait()
        if kind == "reset":
            # Linger for no time: close answers with RST.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.close_connection = True
        handler.connection.close()


def tiny_pipeline(seed: int = 0, *, weights: int = 200_000) -> dict[str, bytes]:
    """A Stable Diffusion repository in small, with what a planner must leave out: pickles, code, pictures, a spare VAE."""
    block = hashlib.sha256(str(seed).encode()).digest()

    def tensor(name: str) -> bytes:
        return (hashlib.sha256(name.encode() + block).digest() * (weights // 32 + 1))[:weights]

    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    small = {
        "model_index.json": json.dumps(index).encode(),
        "scheduler/scheduler_config.json": b'{"_class_name": "DDIMScheduler"}',
        "text_encoder/config.json": b'{"architectures": ["CLIPTextModel"]}',
        "tokenizer/merges.txt": b"#version: 0.2\n",
        "tokenizer/vocab.json": b'{"a": 0}',
        "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
        "vae/config.json": b'{"_class_name": "AutoencoderKL"}',
    }
    large = [
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    junk = {
        "README.md": b"# tiny\n",
        "pipeline.py": b"raise SystemExit('never run me')\n",
        "preview.png": b"\x89PNG",
        "unet/diffusion_pytorch_model.bin": b"a pickle",
        "unet/modeling.py": b"raise SystemExit('nor me')\n",
        "vae_1_0/config.json": b"{}",
        "vae_1_0/diffusion_pytorch_model.safetensors": b"spare",
    }
    return small | {name: tensor(name) for name in large} | junk


def _blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _send(handler: BaseHTTPRequestHandler, status: int, value: object, headers: dict[str, str] | None = None) -> None:
    body = json.dumps(value).encode()
    handler.send_response(status)
    for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, text)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
