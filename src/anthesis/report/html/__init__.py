"""A report as one HTML file."""

from anthesis.report.html.page import check_plotly, page

__all__ = ["check_plotly", "page"]
