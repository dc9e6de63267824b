"""Anthesis: decoder language models with the lowest latency the hardware allows, measured so that it can be trusted.

from anthesis import LLM
LLM().generate(["DeepSpeed is a machine learning framework"], max_new_tokens=100)[0].text
"""

from anthesis.completion import Completion, Stream
from anthesis.errors import AnthesisError
from anthesis.llm import LLM

__all__ = ["LLM", "AnthesisError", "Completion", "Stream"]
__version__ = "0.1.0"
