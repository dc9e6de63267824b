"""Anthesis: decoder language models with the lowest latency the hardware allows, measured so that it can be trusted.

from anthesis import LLM
LLM().generate(["DeepSpeed is a machine learning framework"], max_new_tokens=100)[0].text
"""

from typing import TYPE_CHECKING, Any

from anthesis.errors import AnthesisError

if TYPE_CHECKING:
    from anthesis.completion import Completion, Stream
    from anthesis.llm import LLM

__all__ = ["LLM", "AnthesisError", "Completion", "Stream"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the engine when it is first asked for: the command line's help does without NumPy."""
    if name == "LLM":
        from anthesis.llm import LLM

        return LLM
    if name in ("Completion", "Stream"):
        from anthesis import completion

        return getattr(completion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
