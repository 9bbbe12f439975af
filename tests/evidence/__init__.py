"""Evidence: every figure we claim, rerun by one command. See README.md."""

from .rows import Row, row, rows

__all__ = ["Row", "row", "rows"]
