import errno

import pytest

from downloader import errors


def test_codes_are_those_the_job_is_told() -> None:
    codes = {error.__name__: error.code for error in errors.DownloadError.__subclasses__()}
    assert codes == {
        "UsageError": 2,
        "AccessDenied": 10,
        "NotFound": 11,
        "PlanRefused": 12,
        "VolumeError": 13,
        "IntegrityError": 14,
        "TransientError": 15,
    }


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (errno.ENOSPC, 13, "no space left"),
        (errno.EDQUOT, 13, "quota"),
        (errno.EROFS, 13, "read-only"),
        (errno.EACCES, 13, "write access"),
        (errno.EIO, 15, "the volume failed"),
        (errno.ESTALE, 15, "the volume failed"),
    ],
)
def test_from_volume(number: int, code: int, says: str) -> None:
    error = errors.from_volume(OSError(number, "whatever", "/mnt/models/x"))
    assert error.code == code
    assert says in str(error)
    assert "/mnt/models/x" in str(error)


def test_terminated_passes_every_handler_of_failures() -> None:
    assert not issubclass(errors.Terminated, Exception)
    assert (str(errors.Terminated(15)), errors.Terminated(15).status) == ("SIGTERM", 143)
