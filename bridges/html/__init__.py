"""HTML: a run as one page, to be read without network and without JavaScript."""

from .report import render, write_report

__all__ = ["render", "write_report"]
