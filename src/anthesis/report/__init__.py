"""Results of `bench` and summaries of `complete` as one table, for people or for programs."""

from anthesis.report.line import Line, read_lines
from anthesis.report.render import FORMATS, render

__all__ = ["FORMATS", "Line", "read_lines", "render"]
