"""Data that lives on the host: batches of a loader, read ahead of a run, and their place in it.

A loader is anything that can be iterated over again and yields batches. Nothing here imports the
libraries of loaders; what an iterator can do is seen in its methods.
"""

from optlab.lab.data._batches import Batches
from optlab.lab.data._contents import FIRST_BATCH
from optlab.lab.data._errors import DataError
from optlab.lab.data._evaluation import MAX_BATCHES, is_stream, read_once

__all__ = ["FIRST_BATCH", "MAX_BATCHES", "Batches", "DataError", "is_stream", "read_once"]
