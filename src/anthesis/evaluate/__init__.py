"""How well a model predicts a text, and what a kind of weights costs of that (docs/measuring.md)."""

from anthesis.evaluate.evaluate import evaluate
from anthesis.evaluate.request import Request
from anthesis.evaluate.result import Evaluation

__all__ = ["Evaluation", "Request", "evaluate"]
