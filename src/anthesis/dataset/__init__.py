"""Whole data sets: rows in, completions out, and a run that goes on where it was after any interruption."""

from anthesis.dataset.complete import Outcome, complete
from anthesis.dataset.merge import Merged, merge
from anthesis.dataset.read import DataSet, Row, open_dataset
from anthesis.dataset.request import Request
from anthesis.dataset.summary import Summary, read_summary
from anthesis.dataset.worker import Work, Worker

__all__ = [
    "DataSet",
    "Merged",
    "Outcome",
    "Request",
    "Row",
    "Summary",
    "Work",
    "Worker",
    "complete",
    "merge",
    "open_dataset",
    "read_summary",
]
