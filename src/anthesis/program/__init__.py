"""The program of a token step: its values and operations, and the passes over it."""
