import os
from pathlib import Path

import pytest

from downloader.errors import UsageError
from downloader.settings import parse, quiet_the_hub

FLAGS = ["--model-id", "org/name", "--root", "/mnt/models"]


def test_defaults() -> None:
    settings = parse(FLAGS, {})
    assert (settings.model_id, settings.root, settings.revision) == ("org/name", Path("/mnt/models"), "main")
    assert (settings.variant, settings.source, settings.plan, settings.prune) == (None, None, False, None)
    assert (settings.verify, settings.retries, settings.backoff) == ("size", 5, 1.0)
    assert settings.termination_log == Path("/dev/termination-log")


def test_environment_alone_is_enough() -> None:
    environ = {
        "DOWNLOADER_MODEL_ID": "org/name",
        "DOWNLOADER_ROOT": "/models",
        "DOWNLOADER_REVISION": "refs/pr/1",
        "DOWNLOADER_VARIANT": "fp16",
        "DOWNLOADER_SOURCE": "/src",
        "DOWNLOADER_PLAN": "yes",
        "DOWNLOADER_VERIFY": "full",
        "DOWNLOADER_PRUNE": "2",
        "DOWNLOADER_RETRIES": "0",
        "DOWNLOADER_BACKOFF": "0.5",
        "DOWNLOADER_TERMINATION_LOG": "/tmp/log",
    }
    settings = parse([], environ)
    assert (settings.revision, settings.variant, settings.source) == ("refs/pr/1", "fp16", Path("/src"))
    assert (settings.plan, settings.verify, settings.prune) == (True, "full", 2)
    assert (settings.retries, settings.backoff, settings.termination_log) == (0, 0.5, Path("/tmp/log"))


def test_flag_wins_and_empty_variable_is_unset() -> None:
    settings = parse([*FLAGS, "--revision", "v1"], {"DOWNLOADER_REVISION": "v2", "DOWNLOADER_VARIANT": ""})
    assert (settings.revision, settings.variant) == ("v1", None)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--root", "/x"], "--model-id or DOWNLOADER_MODEL_ID is required"),
        (["--model-id", "a/b"], "--root or DOWNLOADER_ROOT is required"),
        ([*FLAGS, "--token", "hf_x"], "unrecognized arguments: --token"),
        ([*FLAGS, "--rev", "main"], "unrecognized arguments: --rev"),
        ([*FLAGS, "--verify", "some"], "--verify: expected one of size, full, not 'some'"),
        ([*FLAGS, "--prune", "0"], "--prune: expected a whole number of at least 1, not '0'"),
        ([*FLAGS, "--retries", "-1"], "--retries"),
        ([*FLAGS, "--backoff", "soon"], "--backoff: expected a number of seconds"),
        ([*FLAGS, "--variant", "fp16.x"], "--variant: expected letters"),
        ([*FLAGS, "--variant", ""], "--variant is empty"),
        ([*FLAGS, "--revision"], "expected one argument"),
    ],
)
def test_bad_flags_are_named_with_what_is_allowed(flags: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(flags, {})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "model_id", ["name", "a/b/c", "../name", "org/..", "org/.staging", ".a/b", "a--b/c", "a/b.git", "a/b c", "a/", "ö/b"]
)
def test_model_ids_that_are_no_two_plain_segments(model_id: str) -> None:
    with pytest.raises(UsageError, match="--model-id: expected org/name"):
        parse(["--model-id", model_id, "--root", "/x"], {})


@pytest.mark.parametrize(
    "revision", ["..", ".", "a/../b", "/main", "main/", "a//b", ".hidden", "a b", "a\nb", "x/.y", "a" * 256]
)
def test_revisions_that_git_forbids(revision: str) -> None:
    with pytest.raises(UsageError, match="--revision"):
        parse([*FLAGS, "--revision", revision], {})


def test_bad_variable_is_named() -> None:
    with pytest.raises(UsageError, match="DOWNLOADER_RETRIES: expected a whole number of at least 0, not 'x'"):
        parse(FLAGS, {"DOWNLOADER_RETRIES": "x"})


def test_unknown_variable_is_refused_but_not_what_a_service_injects() -> None:
    with pytest.raises(UsageError, match="unknown variable DOWNLOADER_MODELID; known are .*DOWNLOADER_MODEL_ID"):
        parse(FLAGS, {"DOWNLOADER_MODELID": "a/b"})
    injected = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP_ADDR", "CACHE_PORT_80_TCP")
    parse(FLAGS, {f"DOWNLOADER_{name}": "x" for name in injected})


def test_help_names_every_exit_code_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], {})
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("DOWNLOADER_MODEL_ID", "HF_TOKEN_PATH", "HF_ENDPOINT", "143", "examples:"))
    assert max(map(len, text.splitlines())) <= 120


def test_quiet_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    quiet_the_hub()
    assert os.environ["HF_HUB_DISABLE_XET"] == os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
