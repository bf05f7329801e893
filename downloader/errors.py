"""What can go wrong, and the exit code that says so to the Job.

DownloadError
├── UsageError       2   a flag or a variable is missing, unknown or malformed
├── AccessDenied    10   the Hub refuses this token, or the lack of one
├── NotFound        11   no such repository, revision or local directory
├── PlanRefused     12   what is there must not be served: pickles, custom code, a hostile index
├── VolumeError     13   the volume is full, over quota, read-only or not ours to write
├── IntegrityError  14   the bytes are still wrong after every refetch
└── TransientError  15   it may well work later: the only code worth retrying a Job for

A Job's podFailurePolicy fails at once on 2 and 10-14. SIGTERM ends the process with 143 (128 + 15) and is no error.
"""

import errno
import signal


class DownloadError(Exception):
    """One sentence for the operator; `code` is the exit status and `label` its name in the log."""

    code: int
    label: str


class UsageError(DownloadError):
    code = 2
    label = "usage"


class AccessDenied(DownloadError):
    code = 10
    label = "access denied"


class NotFound(DownloadError):
    code = 11
    label = "not found"


class PlanRefused(DownloadError):
    code = 12
    label = "plan refused"


class VolumeError(DownloadError):
    code = 13
    label = "volume"


class IntegrityError(DownloadError):
    code = 14
    label = "integrity"


class TransientError(DownloadError):
    """`retry_after`: seconds the other side asked us to wait, 0 when it named none."""

    code = 15
    label = "transient"

    def __init__(self, message: str, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Terminated(BaseException):
    """A signal ended the run. Not an Exception: nothing on the way up may mistake it for a failure and retry."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


_VOLUME_ADVICE = {
    errno.ENOSPC: "no space left on the volume; give the claim more storage, or free some with --prune",
    errno.EDQUOT: "the volume's quota is used up; raise it, or free some with --prune",
    errno.EROFS: "the volume is mounted read-only; the Job needs it writable",
    errno.EACCES: "permission denied; give the Job's user write access (fsGroup or runAsUser)",
    errno.EPERM: "not permitted; give the Job's user write access (fsGroup or runAsUser)",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EFBIG: "the file system cannot hold a file that large",
    errno.ENAMETOOLONG: "the path is too long for the file system",
}


def from_volume(error: OSError) -> DownloadError:
    """Translate what the file system said about the volume. Unknown errors (EIO, ESTALE on NFS, …) may pass."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in _VOLUME_ADVICE:
        return VolumeError(_VOLUME_ADVICE[error.errno] + where)
    return TransientError(f"the volume failed: {error.strerror or error}{where}")
