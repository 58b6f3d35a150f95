"""Data: read it, split it, and find out what is wrong with it."""

from lightune.data.columns import TASKS
from lightune.data.doctor import Finding, describe, examine
from lightune.data.examples import Columns, Example, Examples
from lightune.data.reading import read, read_parts
from lightune.data.splitting import Splits, split

__all__ = ["TASKS", "Columns", "Example", "Examples", "Finding", "Splits", "describe", "examine", "read", "read_parts", "split"]
