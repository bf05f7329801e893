"""The downloader as the Job runs it: a process of its own, the real huggingface_hub, and a Hub that misbehaves."""

import ctypes
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from standin_hub import ALWAYS, Request, StandInHub, tiny_pipeline

REPOSITORY = Path(__file__).parents[2]
MODEL = "org/tiny"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with StandInHub() as hub:
        yield hub


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines()]

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]

    @property
    def last(self) -> str:
        return str(self.lines[-1]["message"])


def start(hub: StandInHub, root: Path, *flags: str, code: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """`code`: Python to run before the module, in its process."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "HOME": "/nonexistent",
        "HF_ENDPOINT": hub.endpoint,
        **options.pop("environ", {}),
    }
    run_module = "\nimport runpy; runpy.run_module('downloader', run_name='__main__', alter_sys=True)"
    what = ["-m", "downloader"] if code is None else ["-c", code + run_module]
    fixed = ["--model-id", MODEL, "--root", str(root), "--backoff", "0.01", "--retries", "2"]
    return subprocess.Popen(
        [sys.executable, *what, *fixed, *flags],
        env=environ,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # nothing but JSON lines may come out of either
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    output, _ = process.communicate(timeout=120)
    return Outcome(process.returncode, output)


def run(hub: StandInHub, root: Path, *flags: str, **options: Any) -> Outcome:
    return finish(start(hub, root, *flags, **options))


def visible(root: Path) -> dict[str, set[str]]:
    """What a reader sees: per snapshot its files, each one hashed here. Fails on anything that is only half there."""
    found = {}
    for snapshot in root.glob("*/*/snapshots/*"):
        manifest = json.loads((snapshot / "manifest.json").read_text())
        files = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if not path.is_dir()}
        assert files == {"manifest.json", *(file["path"] for file in manifest["files"])}
        for file in manifest["files"]:
            content = (snapshot / file["path"]).read_bytes()
            assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        found[snapshot.name] = files
    for ref in root.glob("*/*/refs/*"):
        assert ref.read_text().strip() in found, "a ref points at nothing"
    return found


def staged(root: Path) -> list[Path]:
    return list(root.glob("*/*/.staging/*"))


def test_from_the_hub_to_the_volume_and_again_for_nothing(hub: StandInHub, root: Path) -> None:
    commit = hub.add(MODEL, tiny_pipeline())
    first = run(hub, root)
    assert first.code == 0, first.output
    assert visible(root)[commit] == {
        "manifest.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        UNET,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert (root / MODEL / "refs/main").read_text() == f"{commit}\n"
    assert staged(root) == []
    before = len(hub.requests)
    second = run(hub, root)
    assert (second.code, second.events) == (0, ["start", "resolved", "present", "done"])
    assert [request.path for request in hub.requests[before:]] == [f"/api/models/{MODEL}/revision/main"]
    pinned = run(hub, root, "--revision", commit)
    assert (pinned.code, len(hub.requests)) == (0, before + 1)
    assert (root / MODEL / "refs" / commit).read_text() == f"{commit}\n"


def test_a_variant_is_a_snapshot_of_its_own_and_the_ref_follows(hub: StandInHub, root: Path) -> None:
    commit = hub.add(MODEL, tiny_pipeline())
    assert run(hub, root).code == run(hub, root, "--variant", "fp16").code == 0
    assert set(visible(root)) == {commit, f"{commit}-fp16"}
    assert (root / MODEL / "refs/main").read_text() == f"{commit}-fp16\n"
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in visible(root)[f"{commit}-fp16"]


def test_the_predictor_finds_what_was_published(hub: StandInHub, root: Path) -> None:
    snapshot = pytest.importorskip("predictor.snapshot")
    commit = hub.add(MODEL, tiny_pipeline(), revision="refs/pr/1")
    assert run(hub, root, "--revision", "refs/pr/1", "--variant", "fp16").code == 0
    found = snapshot.find(root, MODEL, "refs/pr/1")
    assert (found.commit, found.variant, found.pipeline) == (commit, "fp16", "StableDiffusionPipeline")


def test_settings_from_the_environment_alone(hub: StandInHub, root: Path) -> None:
    hub.add(MODEL, tiny_pipeline(1), revision="v1")
    hub.add(MODEL, tiny_pipeline(2), revision="main")
    environ = {"DOWNLOADER_REVISION": "v1", "DOWNLOADER_VARIANT": "fp16", "DOWNLOADER_PRUNE": "1"}
    assert run(hub, root, environ=environ).code == 0
    assert [path.name for path in (root / MODEL / "refs").iterdir()] == ["v1"]


def test_plan_reads_small_files_only_and_writes_nothing(hub: StandInHub, root: Path) -> None:
    hub.add(MODEL, tiny_pipeline())
    outcome = run(hub, root, "--plan")
    assert (outcome.code, outcome.events) == (0, ["start", "resolved", *["file"] * 10, "plan"])
    assert {Path(path).suffix for path in hub.bodies()} == {".json"}
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("xet", [True, False])
def test_the_token_stays_with_the_hub_and_out_of_the_log(hub: StandInHub, root: Path, xet: bool) -> None:
    hub.xet = xet
    hub.add(MODEL, tiny_pipeline())
    hub.fail("body", "reset", path=UNET)
    outcome = run(hub, root, environ={"HF_TOKEN": hub.token})
    assert outcome.code == 0
    sent = {origin: {bool(r.authorization) for r in hub.requests if r.origin == origin} for origin in ("hub", "cdn")}
    assert sent == {"hub": {True}, "cdn": {False}}
    assert hub.token not in outcome.output
    assert "secret-of-the-cdn" not in outcome.output
    assert not [request for request in hub.requests if "xet" in request.path]


def test_the_token_as_a_file(hub: StandInHub, root: Path, tmp_path: Path) -> None:
    hub.add(MODEL, tiny_pipeline())
    (tmp_path / "token").write_text(f"{hub.token}\n")
    assert run(hub, root, "--plan", environ={"HF_TOKEN_PATH": str(tmp_path / "token")}).code == 0
    assert {request.authorization for request in hub.requests} == {f"Bearer {hub.token}"}


PASSING_FAULTS: dict[str, dict[str, Any]] = {
    "reset in the body": {"place": "body", "kind": "reset", "path": UNET},
    "body cut short": {"place": "body", "kind": "truncate", "path": UNET},
    "large file corrupt": {"place": "body", "kind": "corrupt", "path": UNET},
    "small file corrupt while planning": {"place": "body", "kind": "corrupt", "path": "unet/config.json"},
    "small file corrupt": {"place": "body", "kind": "corrupt", "path": "tokenizer/vocab.json"},
    "503 for the body": {"place": "body", "kind": "status", "path": UNET, "times": 2},
    "429 for the body": {"place": "body", "kind": "status", "path": UNET, "status": 429, "Retry_After": "0"},
    "503 for the revision": {"place": "revision", "kind": "status", "times": 2},
    "429 for the revision": {"place": "revision", "kind": "status", "status": 429, "Retry_After": "0"},
    "502 for the tree": {"place": "tree", "kind": "status", "status": 502},
    "503 for the head": {"place": "head", "kind": "status", "path": UNET},
    "no commit header": {"place": "head", "kind": "no_commit", "path": UNET},
}


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_passing_faults_pass(hub: StandInHub, root: Path, fault: str) -> None:
    commit = hub.add(MODEL, tiny_pipeline())
    hub.fail(**PASSING_FAULTS[fault])
    outcome = run(hub, root)
    assert outcome.code == 0, outcome.output
    assert set(visible(root)) == {commit}
    assert staged(root) == []


LASTING_FAULTS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "corrupt": (14, f"still wrong after 3 refetches: {UNET}: sha256", {"place": "body", "kind": "corrupt", "path": UNET}),
    "corrupt while planning": (14, "model_index.json", {"place": "body", "kind": "corrupt", "path": "model_index.json"}),
    "reset": (15, "gave up after 3 tries", {"place": "body", "kind": "reset", "path": UNET}),
    "503": (15, "answered 503", {"place": "body", "kind": "status", "path": UNET}),
    "503 at once": (15, "resolving main: the Hub answered 503", {"place": "revision", "kind": "status"}),
    "no Hub": (15, "check HF_ENDPOINT and the proxy", {"place": "head", "kind": "no_commit", "path": UNET}),
}


@pytest.mark.parametrize("fault", LASTING_FAULTS)
def test_lasting_faults_leave_nothing(hub: StandInHub, root: Path, tmp_path: Path, fault: str) -> None:
    code, says, how = LASTING_FAULTS[fault]
    hub.add(MODEL, tiny_pipeline())
    hub.fail(**how, times=ALWAYS)
    outcome = run(hub, root, "--termination-log", str(tmp_path / "log"))
    assert outcome.code == code, outcome.output
    assert says in outcome.last
    assert (tmp_path / "log").read_text().startswith(f"exit {code} (")
    assert says in (tmp_path / "log").read_text()
    assert (visible(root), staged(root)) == ({}, [])


@pytest.mark.parametrize("how", ["refused", "503"])
def test_a_hub_that_is_down_is_no_success_over_a_part_filled_volume(hub: StandInHub, root: Path, how: str) -> None:
    commit = hub.add(MODEL, tiny_pipeline())
    assert run(hub, root).code == 0
    hub.add(MODEL, tiny_pipeline(2))
    hub.fail("revision", "status", times=ALWAYS)
    elsewhere = {"HF_ENDPOINT": "http://127.0.0.1:9"} if how == "refused" else {}
    assert run(hub, root, environ=elsewhere).code == 15
    assert set(visible(root)) == {commit}
    assert (root / MODEL / "refs/main").read_text() == f"{commit}\n"


def test_a_damaged_snapshot_costs_only_what_is_damaged(hub: StandInHub, root: Path) -> None:
    commit = hub.add(MODEL, tiny_pipeline())
    assert run(hub, root).code == 0
    weights = root / MODEL / "snapshots" / commit / UNET
    weights.write_bytes(bytes(weights.stat().st_size))
    assert run(hub, root).events[2] == "present"  # as big as before
    before = len(hub.bodies())
    outcome = run(hub, root, "--verify", "full")
    assert (outcome.code, "repaired" in outcome.events) == (0, True)
    assert [path for path in hub.bodies()[before:] if path.endswith(".safetensors")] == [UNET]
    assert set(visible(root)) == {commit}


def without(*paths: str, **others: bytes) -> dict[str, bytes]:
    return {path: content for path, content in {**tiny_pipeline(), **others}.items() if path not in paths}


PICKLED = without(
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    **{"text_encoder/pytorch_model.bin": b"a pickle"},
)
INDEX = b'{"weight_map": {"a": "../../../etc/cron.d/x.safetensors"}}'
CUSTOM = json.dumps({"_class_name": ["pipeline", "Mine"], "unet": ["diffusers", "UNet2DConditionModel"]}).encode()
BAD_INPUTS: dict[str, tuple[int, str, list[str], dict[str, bytes] | None, dict[str, str]]] = {
    "no repository": (11, "no repository org/absent", ["--model-id", "org/absent"], {}, {}),
    "no repository, with a token": (11, "no repository org/absent", ["--model-id", "org/absent"], {}, {"HF_TOKEN": "good"}),
    "wrong token": (10, "refuses this token", [], {}, {"HF_TOKEN": "hf_wrong"}),
    "no revision": (11, f"{MODEL} has no revision 'v9'", ["--revision", "v9"], {}, {}),
    "no commit": (11, "has no revision", ["--revision", "0" * 40], {}, {}),
    "no safetensors": (12, "text_encoder has no safetensors, only pytorch_model.bin", [], PICKLED, {}),
    "custom code": (12, "custom code", [], without(**{"model_index.json": CUSTOM}), {}),
    "traversal": (12, "must be a plain .safetensors name", [], without(UNET, **{f"{UNET}.index.json": INDEX}), {}),
    "no pipeline": (12, "not a diffusers pipeline", [], {"model.safetensors": b"x"}, {}),
    "no variant": (12, "no component has safetensors of variant 'bf16'", ["--variant", "bf16"], {}, {}),
    "unknown flag": (2, "unrecognized arguments: --force", ["--force"], {}, {}),
    "unknown variable": (2, "unknown variable DOWNLOADER_MODEL", [], {}, {"DOWNLOADER_MODEL": "x"}),
    "bad value": (2, "--verify: expected one of size, full, not 'some'", ["--verify", "some"], {}, {}),
    "offline": (2, "HF_HUB_OFFLINE is set", [], {}, {"HF_HUB_OFFLINE": "1"}),
    "no URL": (2, "HF_ENDPOINT 'hub.example' cannot be asked", [], {}, {"HF_ENDPOINT": "hub.example"}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_gets_one_clear_line_and_its_code(hub: StandInHub, root: Path, case: str) -> None:
    code, says, flags, files, environ = BAD_INPUTS[case]
    hub.add(MODEL, files or tiny_pipeline())
    environ = {name: hub.token if value == "good" else value for name, value in environ.items()}
    outcome = run(hub, root, *flags, environ=environ)
    assert (outcome.code, outcome.lines[-1]["code"]) == (code, code), outcome.output
    assert says in outcome.last
    assert "\n" not in outcome.last
    assert outcome.events.count("retry") == 0
    assert (visible(root), staged(root)) == ({}, [])


@pytest.mark.parametrize(
    ("token", "says"),
    [(False, "accept the terms at {hub}/org/tiny and give a token"), (True, "the account of this token has no access")],
)
def test_a_gated_repository_says_what_to_do(hub: StandInHub, root: Path, token: bool, says: str) -> None:
    hub.add(MODEL, tiny_pipeline(), gated=True)
    outcome = run(hub, root, environ={"HF_TOKEN": hub.token} if token else {})
    assert outcome.code == 10
    assert says.format(hub=hub.endpoint) in outcome.last


def test_a_disk_that_is_too_small_is_seen_before_the_first_weight(hub: StandInHub, root: Path) -> None:
    hub.add(MODEL, tiny_pipeline())
    code = "import os, types; os.statvfs = lambda path: types.SimpleNamespace(f_bavail=100, f_frsize=4096)"
    outcome = run(hub, root, code=code)
    assert outcome.code == 13
    assert "600.57 kB do not fit in the 409.60 kB that are free" in outcome.last
    assert {Path(path).suffix for path in hub.bodies()} == {".json"}


def test_a_volume_that_will_not_take_the_bytes(hub: StandInHub, root: Path) -> None:
    hub.add(MODEL, tiny_pipeline())
    limit = (100_000, 100_000)
    outcome = run(hub, root, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert outcome.code == 13, outcome.output
    assert "cannot hold a file that large" in outcome.last
    assert staged(root) == []


def as_no_superuser() -> None:
    """In the child: root, if that is who runs the tests, no longer passes by the mode bits."""
    drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
    prctl = ctypes.CDLL(None).prctl
    for capability in (dac_override, dac_read_search):
        prctl(drop_from_bounding_set, capability, 0, 0, 0)


def test_an_unwritable_volume(hub: StandInHub, root: Path) -> None:
    hub.add(MODEL, tiny_pipeline())
    root.chmod(0o555)
    outcome = run(hub, root, preexec_fn=as_no_superuser)
    assert outcome.code == 13, outcome.output
    assert "give the Job's user write access" in outcome.last
    assert hub.requests == []


def test_any_uid_can_read_what_a_strict_umask_wrote(hub: StandInHub, root: Path) -> None:
    hub.add(MODEL, tiny_pipeline())
    assert run(hub, root, umask=0o077).code == 0
    assert {path.stat().st_mode & 0o777 for path in root.rglob("*") if path.is_file()} == {0o644}
    assert {path.stat().st_mode & 0o777 for path in root.rglob("*") if path.is_dir()} == {0o755}


WATCH = """
import os, sys
def watch(event, args):
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.symlink", "os.link"):
        path = os.fspath(args[0]) if isinstance(args[0], (str, os.PathLike)) else ""
        if path.startswith("/") and not path.startswith((sys.argv[4], "/dev/null")) and "__pycache__" not in path:
            os.write(1, f"{event} {path}".encode())
            os._exit(99)
sys.addaudithook(watch)
"""


def test_nothing_is_written_outside_the_volume(hub: StandInHub, root: Path) -> None:
    hub.add(MODEL, tiny_pipeline())
    outcome = run(hub, root, code=WATCH)
    assert outcome.code == 0, outcome.output


def test_sigterm_in_the_middle_of_a_body_cleans_up(hub: StandInHub, root: Path) -> None:
    hub.add(MODEL, tiny_pipeline())
    hub.fail("body", "hold", path=UNET)
    process = start(hub, root)
    assert hub.held.wait(timeout=60)
    assert len(staged(root)) == 1
    process.send_signal(signal.SIGTERM)
    outcome = finish(process)
    assert (outcome.code, outcome.events[-1]) == (143, "terminated")
    assert (visible(root), staged(root)) == ({}, [])


def test_three_at_once_all_succeed_with_one_snapshot(hub: StandInHub, root: Path) -> None:
    commit = hub.add(MODEL, tiny_pipeline())
    # None goes on before all three have seen an empty volume and planned.
    together = threading.Barrier(3)

    def meet(request: Request) -> None:
        if request.method == "HEAD" and request.path.endswith(UNET):
            together.wait(timeout=60)

    hub.on_request = meet
    outcomes = [finish(process) for process in [start(hub, root) for _ in range(3)]]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0], outcomes
    assert sorted("published" in outcome.events for outcome in outcomes) == [False, False, True]
    assert (set(visible(root)), staged(root)) == ({commit}, [])


# SIGKILL when the Hub gets the n-th request: resolving, listing, planning, and in and between the bodies.
AT_REQUEST = [1, 4, 12, 24]
# SIGKILL around a system call: (call, a part of its arguments, which of these at the earliest, before or after it).
AT_CALL = [
    ("mkdir", ".staging", 1, "after"),
    ("fsync", "", 1, "before"),
    ("rename", "/snapshots/", 1, "before"),
    ("rename", "/snapshots/", 1, "after"),
    ("fsync", "", 18, "before"),
    ("replace", "/refs/", 1, "before"),
    ("replace", "/refs/", 1, "after"),
]
KILLER = """
import os, signal
real, seen = os.{call}, []
def killing(*args, **kwargs):
    if {part!r} in str(args):
        seen.append(1)
    die = len(seen) >= {number} and {part!r} in str(args)
    if die and {when!r} == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
os.{call} = killing
"""


def age_leases(root: Path) -> None:
    for path in root.glob("*/*/.staging/*/lease"):
        os.utime(path, (0, 0))
    for path in staged(root):
        os.utime(path, (0, 0))


def after_a_kill(hub: StandInHub, root: Path, killed: Outcome, commit: str) -> None:
    assert killed.code == -signal.SIGKILL, killed.output
    assert set(visible(root)) <= {commit}
    age_leases(root)
    again = run(hub, root)
    assert again.code == 0, again.output
    assert (set(visible(root)), staged(root)) == ({commit}, [])
    assert (root / MODEL / "refs/main").read_text() == f"{commit}\n"


@pytest.mark.parametrize("number", AT_REQUEST)
def test_sigkill_at_a_request_leaves_nothing_or_all(hub: StandInHub, root: Path, number: int) -> None:
    commit = hub.add(MODEL, tiny_pipeline())
    started = threading.Event()
    processes: list[subprocess.Popen[str]] = []

    def kill(request: Request) -> None:
        if len(hub.requests) >= number:
            started.wait(timeout=60)
            processes[0].kill()

    hub.on_request = kill
    processes.append(start(hub, root))
    started.set()
    killed = finish(processes[0])
    hub.on_request = lambda request: None
    assert visible(root) == {}
    after_a_kill(hub, root, killed, commit)


@pytest.mark.parametrize(("call", "part", "number", "when"), AT_CALL)
def test_sigkill_around_a_call_leaves_nothing_or_all(
    hub: StandInHub, root: Path, call: str, part: str, number: int, when: str
) -> None:
    commit = hub.add(MODEL, tiny_pipeline())
    killed = run(hub, root, code=KILLER.format(call=call, part=part, number=number, when=when))
    after_a_kill(hub, root, killed, commit)


def test_a_local_directory_needs_no_hub(hub: StandInHub, root: Path, tmp_path: Path) -> None:
    for name, content in tiny_pipeline().items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    flags = ["--source", str(tmp_path / "source"), "--model-id", "examples/shapes"]
    first, second = run(hub, root, *flags), run(hub, root, *flags)
    assert (first.code, second.code, hub.requests) == (0, 0, [])
    assert second.events == ["start", "resolved", "present", "done"]
    [name] = visible(root)
    assert (root / "examples/shapes/refs/main").read_text() == f"{name}\n"
