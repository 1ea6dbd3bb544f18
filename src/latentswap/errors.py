"""The errors of the project: one tree, each with the exit code of the command line and an HTTP status.

A message says what was wrong, with the value, and what to do about it. The library raises these; only `cli/`
turns them into text and an exit code.
"""


class LatentSwapError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 1
    http_status = 500


class UsageError(LatentSwapError, ValueError):
    """An option or argument is unknown, missing or out of range. Raised before any model loads."""

    exit_code = 2
    http_status = 422


class BadInputError(LatentSwapError, ValueError):
    """A file was read but cannot be used: truncated, damaged, of the wrong size or shape."""

    exit_code = 3
    http_status = 422


class UnsupportedMediaError(BadInputError):
    """The content is not of a format that the project reads."""

    http_status = 415


class TooLargeError(BadInputError):
    """The content is larger than the project is willing to decode."""

    http_status = 413


class NoFaceError(LatentSwapError):
    """No face that can be used was found, or the choice among several is ambiguous."""

    exit_code = 4
    http_status = 422


class WeightsError(LatentSwapError):
    """A weight file is missing, damaged, of the wrong kind, or could not be fetched."""

    exit_code = 5
    http_status = 500


class ResourceError(LatentSwapError):
    """The machine ran out of something: disk, memory, or a folder that can be written."""

    exit_code = 6
    http_status = 507


class ProvenanceError(LatentSwapError):
    """Marking or signing an output failed, so no output was written."""

    exit_code = 7
    http_status = 500


class ProtectedPersonError(LatentSwapError):
    """A face is that of a person on a do-not-swap list, so nothing was made of it."""

    exit_code = 9
    http_status = 403
