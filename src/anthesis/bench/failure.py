"""Why a point of a sweep has no measurement, in one line."""

from __future__ import annotations

from anthesis.errors import AnthesisError, ConfigError, DeviceMemoryError, RankError, RequestError, UnsupportedError


def failure(error: AnthesisError | MemoryError) -> str:
    """The kind of failure and its reason: "out of memory: ...", "unsupported: ...", "refused: ..." or "failed: ...".

    Args:
        error: that measuring the point ended by.
    """
    reason = " ".join(str(error).split())
    # a rank that was killed by it was most likely killed by the kernel, as `PointProcess` says of processes
    if isinstance(error, MemoryError | DeviceMemoryError) or (
        isinstance(error, RankError) and "killed by SIGKILL" in reason
    ):
        return f"out of memory: {reason or 'no more could be taken'}"
    if isinstance(error, UnsupportedError | ConfigError):
        return f"unsupported: {reason}"
    if isinstance(error, RequestError):
        return f"refused: {reason}"
    return f"failed: {reason}"
