"""What can go wrong, and who is told what.

    ServingError                 a request gets an answer other than a picture; the class is the HTTP status
    ├── InvalidRequest      400  names the field, what came and what is allowed
    ├── Forbidden           403  the operator's business
    ├── UnknownPath         404
    ├── UnknownModel        404
    ├── UnknownRequest      404
    ├── WrongMethod         405  with Allow
    ├── NotAcceptable       406  none of the media types that the caller accepts can be had
    ├── BodyTooSlow         408
    ├── AlreadyOver         409  nothing left to cancel
    ├── BodyTooLarge        413
    ├── EncodedBody         415  compressed: how large it would get is nothing we care to find out
    ├── QueueFull           429  with Retry-After
    ├── Cancelled           499  the caller went away, or somebody who knew the request id cancelled it
    ├── GenerationFailed    500  opaque: the cause is in the log under the request id
    ├── NotOffered          501
    ├── NotServing          503  loading or draining, with Retry-After
    └── DeadlineExceeded    504
    StartupError                 the process cannot serve, or not any longer, and ends; the class is the exit code
    ├── ModelNotFound        20  nothing under that name on the volume
    ├── SnapshotRefused      21  partial, altered, pickled or executable
    ├── ModelNotLoadable     22  complete, yet no text-to-image pipeline comes of it
    ├── DeviceUnavailable    23
    ├── DeviceFailed         24  while serving: a new process is needed to get it back
    └── SigningUnavailable   25  the certificate, its key or the package that pictures are to be signed with

The text of a ServingError is public: it never holds a prompt, a path or a foreign exception's text.
"""

from __future__ import annotations


class ServingError(Exception):
    status = 500

    def __init__(self, message: str, *, retry_after: int | None = None, reason: str = "other") -> None:
        """`retry_after`: whole seconds after which another try makes sense, at least 1. `reason`: of metrics.REASONS, where
        others of this class have another."""
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.reason = reason

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {"retry-after": str(self.retry_after)} if self.retry_after else {}


class InvalidRequest(ServingError):
    status = 400

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """`field`: the one to blame, as the caller's protocol names it, where it is one."""
        super().__init__(message)
        self.field = field


class Forbidden(ServingError):
    status = 403


class UnknownPath(ServingError):
    status = 404


class WrongMethod(ServingError):
    status = 405

    def __init__(self, message: str, *, allow: str) -> None:
        """`allow`: the methods that there are, with commas."""
        super().__init__(message)
        self.allow = allow

    @property
    def headers(self) -> dict[str, str]:
        return {"allow": self.allow}


class UnknownModel(ServingError):
    status = 404


class UnknownRequest(ServingError):
    status = 404


class NotAcceptable(ServingError):
    status = 406


class BodyTooSlow(ServingError):
    status = 408


class AlreadyOver(ServingError):
    status = 409


class BodyTooLarge(ServingError):
    status = 413


class EncodedBody(ServingError):
    status = 415


class QueueFull(ServingError):
    status = 429


class Cancelled(ServingError):
    status = 499


class GenerationFailed(ServingError):
    status = 500


class NotOffered(ServingError):
    status = 501


class NotServing(ServingError):
    status = 503


class DeadlineExceeded(ServingError):
    status = 504


class StartupError(Exception):
    exit_code = 1


class ModelNotFound(StartupError):
    exit_code = 20


class SnapshotRefused(StartupError):
    exit_code = 21


class ModelNotLoadable(StartupError):
    exit_code = 22


class DeviceUnavailable(StartupError):
    exit_code = 23


class DeviceFailed(StartupError):
    exit_code = 24


class SigningUnavailable(StartupError):
    exit_code = 25
