"""One model as it lies on the volume: found, checked against its manifest, refused when in doubt. Reads, never writes.

    <root>/<org>/<name>/refs/<revision, URL-quoted>       text: the snapshot's directory name, <commit>[-<variant>]
    <root>/<org>/<name>/snapshots/<commit>[-<variant>]/   model_index.json, unet/…, and manifest.json:
        {"format": 1, "repo", "commit", "variant": … | null, "pipeline", "files": [{"path", "size", "sha256"}, …]}

The downloader writes this tree and hashes what it writes; here presence and size are checked, which takes milliseconds
where hashing would take a cold start many seconds.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from predictor.errors import ModelNotFound, SnapshotRefused

MANIFEST = "manifest.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Files that run code when loaded or could be run: a pipeline in safetensors needs none of them.
_REFUSED_SUFFIXES = frozenset(
    ".py .pyc .so .dll .exe .sh .bin .ckpt .pt .pth .pkl .pickle .h5 .msgpack .onnx .joblib .npy .npz".split()
)


@dataclass(frozen=True)
class Snapshot:
    path: Path
    repo: str
    commit: str
    variant: str | None
    pipeline: str  # class name in diffusers
    bytes: int


def find(root: Path, model_id: str, revision: str) -> Snapshot:
    """Resolves `revision` (a ref or a commit) and checks what it names. Raises ModelNotFound or SnapshotRefused, with a
    sentence for the operator."""
    model = root / model_id
    if not model.is_dir():
        there = sorted("/".join(path.parts[-3:-1]) for path in root.glob("*/*/snapshots"))
        raise ModelNotFound(f"{model_id} is not on the volume {root}; there: {', '.join(there) or 'nothing'}")
    name = _resolve(model, revision)
    path = model / "snapshots" / name
    if not path.is_dir() or path.is_symlink():
        raise SnapshotRefused(f"{path} is named by revision {revision} but is not a directory")
    manifest = _read_manifest(path)
    _check_files(path, manifest["files"])
    _check_configs(path)
    return Snapshot(
        path=path,
        repo=manifest["repo"],
        commit=manifest["commit"],
        variant=manifest["variant"],
        pipeline=manifest["pipeline"],
        bytes=sum(entry["size"] for entry in manifest["files"]),
    )


def _resolve(model: Path, revision: str) -> str:
    ref = model / "refs" / ref_name(revision)
    if ref.is_file():
        name = ref.read_text().strip()
        if not _COMMIT.match(name) or "/" in name:
            raise SnapshotRefused(f"{ref} does not hold a snapshot's name")
        return name
    snapshots = sorted(path.name for path in (model / "snapshots").glob("*"))
    if _COMMIT.fullmatch(revision):
        matching = [name for name in snapshots if name == revision or name.startswith(revision + "-")]
        if len(matching) == 1:
            return matching[0]
    refs = sorted(path.name for path in (model / "refs").glob("*"))
    raise ModelNotFound(
        f"revision {revision} of {model} is not on the volume; refs: {', '.join(refs) or 'none'}; "
        f"snapshots: {', '.join(snapshots) or 'none'}"
    )


def ref_name(revision: str) -> str:
    """One path segment: refs/pr/1 is the file refs%2Fpr%2F1, as the downloader writes it."""
    return quote(revision, safe="")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        kinds = {"repo": str, "commit": str, "variant": str | None, "pipeline": str, "files": list}
        good = manifest["format"] == 1 and all(isinstance(manifest[key], kind) for key, kind in kinds.items())
        good = good and all(type(entry["size"]) is int and isinstance(entry["path"], str) for entry in manifest["files"])
    except FileNotFoundError:
        raise SnapshotRefused(f"{path} has no {MANIFEST}: it was not put there by the downloader") from None
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise SnapshotRefused(f"{path / MANIFEST} cannot be read as a manifest of format 1")
    return dict(manifest)


def _check_files(path: Path, listed: list[dict[str, Any]]) -> None:
    sizes = {entry["path"]: entry["size"] for entry in listed}
    for name in sizes:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SnapshotRefused(f"{path / MANIFEST} lists {name}, which lies outside")
    found = _sizes(path)
    for name in sorted(sizes.keys() | found.keys()):
        if name not in found:
            raise SnapshotRefused(f"{path} lacks {name}, which its manifest lists")
        if name not in sizes:
            raise SnapshotRefused(f"{path} holds {name}, which its manifest does not list")
        if sizes[name] != found[name]:
            raise SnapshotRefused(f"{path / name} has {found[name]} bytes where its manifest says {sizes[name]}")


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of every file but the manifest, by its path in the snapshot."""
    found = {}
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_symlink():
            raise SnapshotRefused(f"{file} is a symbolic link")
        if file.suffix.lower() in _REFUSED_SUFFIXES:
            raise SnapshotRefused(f"{file} may hold code; only safetensors and plain configuration are loaded")
        if not file.is_dir() and name != MANIFEST:
            found[name] = file.stat().st_size
    return found


def _check_configs(path: Path) -> None:
    """Configuration can name code to import, from the repository (auto_map) or from a hub of kernels."""
    for file in path.rglob("*.json"):
        if file.name not in ("config.json", "model_index.json", "tokenizer_config.json"):
            continue
        try:
            config = json.loads(file.read_bytes())
        except ValueError:
            raise SnapshotRefused(f"{file} is not JSON") from None
        if _names_code(config):
            raise SnapshotRefused(f"{file} names code to run")


def _names_code(config: object) -> bool:
    if isinstance(config, list):
        return any(map(_names_code, config))
    if not isinstance(config, dict):
        return False
    kernel = any("attn_implementation" in key and "/" in str(value) for key, value in config.items())
    return "auto_map" in config or kernel or any(map(_names_code, config.values()))
