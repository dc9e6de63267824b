"""Whole data sets: rows in, completions out, and a run that goes on where it was after any interruption."""

from anthesis.dataset.complete import Outcome, complete
from anthesis.dataset.read import DataSet, Row, open_dataset
from anthesis.dataset.request import Request
from anthesis.dataset.summary import Summary, read_summary

__all__ = ["DataSet", "Outcome", "Request", "Row", "Summary", "complete", "open_dataset", "read_summary"]
