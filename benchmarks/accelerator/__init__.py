"""One command for an accelerator: `python -m benchmarks accelerator --out FOLDER`.

It needs no choice and at most six minutes: first whether the results are right on the device, then
how fast they are computed. It ends in time whatever happens, with what it has measured until then.
"""

from benchmarks.accelerator._run import Item, run

__all__ = ["Item", "run"]
