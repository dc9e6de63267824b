"""Turning prompts into tokens: blocks of the cache, steps, stopping."""
