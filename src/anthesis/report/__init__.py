"""Results of `bench`, `complete` and `evaluate`, and what others have published, as one report."""

from anthesis.report.contents import Contents, compose
from anthesis.report.line import Line
from anthesis.report.prices import Price, read_prices
from anthesis.report.render import FORMATS, check_format, render
from anthesis.report.result_file import ResultFile, read_result, read_results

__all__ = [
    "FORMATS",
    "Contents",
    "Line",
    "Price",
    "ResultFile",
    "check_format",
    "compose",
    "read_prices",
    "read_result",
    "read_results",
    "render",
]
