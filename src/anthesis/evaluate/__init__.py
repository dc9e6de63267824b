"""How well a model predicts a text, and what a kind of weights costs of that (docs/measuring.md)."""
