"""The only reader of argv and of the environment.

Every flag has a variable: `--model-id` is DOWNLOADER_MODEL_ID. A flag wins over its variable; an empty variable counts as
unset; an unknown flag or DOWNLOADER_ variable is an error. The token is neither: huggingface_hub reads HF_TOKEN, else the
file that HF_TOKEN_PATH names.
"""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn
from urllib.parse import quote

from downloader.errors import UsageError

PREFIX = "DOWNLOADER_"


@dataclass(frozen=True)
class Settings:
    model_id: str  # org/name
    root: Path
    revision: str
    variant: str | None
    source: Path | None  # None: the Hub
    plan: bool
    verify: Literal["size", "full"]
    prune: int | None  # None: delete nothing
    retries: int
    backoff: float  # seconds
    termination_log: Path


def parse(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
    """Read flags, then variables, then defaults. Raises `UsageError`; `--help` prints and exits 0."""
    environ = os.environ if environ is None else environ
    flags = vars(_parser().parse_args(argv))
    _refuse_unknown_variables(environ)
    values = {option.name: _value(option, flags[option.name], environ) for option in _OPTIONS}
    return Settings(**values)  # type: ignore[arg-type]


def quiet_the_hub() -> None:
    """Settle how huggingface_hub behaves. It reads these once, at its import, so this runs before that.

    Xet stays off: its transfers are neither resumable nor measured here, and plain HTTP is.
    """
    for switch in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_XET"):
        os.environ[switch] = "1"


@dataclass(frozen=True)
class _Option:
    name: str
    convert: Callable[[str], object]
    metavar: str
    help: str
    default: str | None = None
    required: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def _model_id(text: str) -> str:
    # The Hub's own rules for a repository's name. They also keep `.staging` and `..` out of the paths made of it.
    segment = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
    if not re.fullmatch(f"{segment}/{segment}", text, re.ASCII) or re.search(r"--|\.\.|\.git$", text):
        raise ValueError("expected org/name, like stabilityai/stable-diffusion-xl-base-1.0")
    return text


def _revision(text: str) -> str:
    # Git forbids these in a branch or tag too. One path segment once quoted, so it must fit in 255 bytes.
    if not re.fullmatch(r"[\w./@+=-]+", text, re.ASCII) or re.search(r"(^|/)\.|\.\.|//|^/|/$", text):
        raise ValueError("expected a branch, a tag, refs/pr/N or a commit")
    if len(quote(text, safe="")) > 255:
        raise ValueError("expected at most 255 characters")
    return text


def _variant(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]{1,32}", text):
        raise ValueError("expected letters, digits and _, like fp16")
    return text


def _one_of(*allowed: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return text

    return convert


def _whole(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or int(text) < least:
            raise ValueError(f"expected a whole number of at least {least}")
        return int(text)

    return convert


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,4}(\.\d+)?", text, re.ASCII):
        raise ValueError("expected a number of seconds from 0 to 9999, like 0.5")
    return float(text)


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "0", "false", "no"):
        raise ValueError("expected true or false")
    return text.lower() in ("1", "true", "yes")


_OPTIONS = (
    _Option("model_id", _model_id, "ORG/NAME", "the model; also names its directory on the volume", required=True),
    _Option("root", Path, "DIR", "the mounted volume; the model goes to DIR/ORG/NAME", required=True),
    _Option("revision", _revision, "REV", "branch, tag, refs/pr/N or commit (default: main)", default="main"),
    _Option("variant", _variant, "NAME", "take weights of this variant where a component has it, like fp16"),
    _Option("source", Path, "DIR", "take the model from this local diffusers directory instead of the Hub"),
    _Option("plan", _yes_or_no, "", "print files, bytes and hashes, and stop: no weights, nothing written", "false"),
    _Option(
        "verify",
        _one_of("size", "full"),
        "size|full",
        "how to check a snapshot that is there already; what is fetched is always hashed (default: size)",
        default="size",
    ),
    _Option("prune", _whole(1), "N", "afterwards keep the N newest snapshots and those a ref names (default: keep all)"),
    _Option("retries", _whole(0), "N", "tries after the first, for each request that fails in passing (default: 5)", "5"),
    _Option("backoff", _seconds, "SECONDS", "wait before the first retry; doubles up to a minute (default: 1)", "1"),
    _Option(
        "termination_log",
        Path,
        "PATH",
        "where the last error also goes (default: /dev/termination-log)",
        default="/dev/termination-log",
    ),
)

_DESCRIPTION = """\
Put one verified text-to-image model on a shared volume, and exit.

Resolves the revision to a commit, plans the exact files (safetensors only, no code), checks the free space, fetches
into a staging directory, hashes every byte, refetches what is wrong, and publishes with one rename. A reader sees the
whole model or none of it. Run it again: it finds the snapshot there and fetches nothing. Run two at once: both succeed.
"""

_EPILOG = """\
environment:
  DOWNLOADER_<FLAG>   every flag has one: --model-id is DOWNLOADER_MODEL_ID. A flag wins; empty means unset.
  HF_TOKEN            a token for gated and private models, or HF_TOKEN_PATH=<file that holds it>. Never a flag.
  HF_ENDPOINT         another Hub or a mirror (default: https://huggingface.co)

output: one JSON object a line on stdout, each with "time", "level", "event" and a "message" that reads as a sentence.

exit codes:
   0  done                           12  refused: no safetensors, custom code, a hostile index
   2  usage                          13  the volume is full, over quota or not writable
  10  token wrong or missing, gated  14  bytes still wrong after every refetch
  11  no such repository, revision   15  transient: retries used up, worth another Job
 143  SIGTERM; staging cleaned up

examples:
  python -m downloader --model-id stabilityai/stable-diffusion-xl-base-1.0 --variant fp16 --root /mnt/models
  python -m downloader --model-id examples/shapes --source ./examples/shapes/model --root /mnt/models
  python -m downloader --model-id stabilityai/stable-diffusion-xl-base-1.0 --variant fp16 --root /mnt/models --plan
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m downloader",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=118),
        allow_abbrev=False,
    )
    for option in _OPTIONS:
        if option.convert is _yes_or_no:
            parser.add_argument(option.flag, action="store_const", const="true", help=option.help)
        else:
            # Converted in _value, with the variables: one wording for both.
            parser.add_argument(option.flag, metavar=option.metavar, help=option.help)
    return parser


def _value(option: _Option, flag: str | None, environ: Mapping[str, str]) -> object:
    origin, text = option.flag, flag
    if text is None:
        origin, text = option.variable, environ.get(option.variable) or None
    if text is None:
        text = option.default
    if text is None and option.required:
        raise UsageError(f"{option.flag} or {option.variable} is required (see --help)")
    if text is None:
        return None
    if not text.strip():
        raise UsageError(f"{origin} is empty")
    try:
        return option.convert(text)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}, not {text!r}") from error


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = {option.variable for option in _OPTIONS}
    # A Service named `downloader…` makes Kubernetes inject DOWNLOADER_…_SERVICE_HOST, …_PORT_80_TCP and the like.
    injected = re.compile(PREFIX + r"(\w+_)?(SERVICE_(HOST|PORT)|PORT)(_\w+)?")
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and not injected.fullmatch(name):
            raise UsageError(f"unknown variable {name}; known are {', '.join(sorted(known))}")
