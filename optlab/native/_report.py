"""The line that says why XLA computes a step, or a part of it."""

import logging

logger = logging.getLogger("optlab.native")

_said: set[str] = set()


def report(reason: str) -> None:
    """Log a warning of one line, once for each reason."""
    if reason not in _said:
        _said.add(reason)
        logger.warning("optlab.native: %s", reason)
