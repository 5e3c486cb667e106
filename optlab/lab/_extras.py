"""One message for what the core does not need and the lab does."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(who: str, extra: str = "lab") -> Iterator[None]:
    """Import optional packages inside this block; where one is missing, name the extra.

    Args:
        who: the function that cannot work without them, as in every error of optlab.
        extra: the extra of `optlab` that brings them.

    Raises:
        ModuleNotFoundError: the missing module and the command that installs it.

    Example:
        >>> with needs_extra("paint"):
        ...     import paint_by_numbers
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: paint: the module paint_by_numbers is required and not installed; run \
pip install "optlab[lab]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{who}: the module {error.name} is required and not installed; "
            f'run pip install "optlab[{extra}]"',
            name=error.name,
        ) from error
