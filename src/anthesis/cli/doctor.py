"""`anthesis doctor`."""


def doctor() -> None:
    """What this machine offers, and what anthesis can use of it."""
