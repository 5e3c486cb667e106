"""The error message for optional packages that are not installed."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(who: str, extra: str = "lab", *, package: str | None = None) -> Iterator[None]:
    """Import optional packages in this block; if one is missing, the error names the extra.

    Args:
        who: the public function that needs the packages; the error begins with it.
        extra: the extra of `optlab` that installs the packages.
        package: the package itself, if no extra installs it.

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
        wanted = package or f'"optlab[{extra}]"'
        raise ModuleNotFoundError(
            f"{who}: the module {error.name} is required and not installed; "
            f"run pip install {wanted}",
            name=error.name,
        ) from error
