"""`anthesis generate`."""

from anthesis.cli.options import Model


def generate(model: Model = None) -> None:
    """Completes prompts."""
