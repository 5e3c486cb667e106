"""The directive `optimizers-table`, which the registry fills, so that no page lists optimizers."""

import inspect
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx

from optlab.registry import BY_NAME, Row


def table() -> list[str]:
    """Return the lines of the table in Markdown."""
    lines = ["| optimizer | one update | its direction alone | arguments |", "|---|---|---|---|"]
    return lines + [_line(row) for row in BY_NAME.values()]


def _line(row: Row) -> str:
    name = row.constructor.__name__
    fixed = ", ".join(f"{key}={value}" for key, value in row.fixed.items())
    direction = f"`{row.direction.__name__}`" if row.direction else ""
    arguments = list(inspect.signature(row.constructor).parameters)[1:]
    call = f"`{name}`" + (f" with `{fixed}`" if fixed else "")
    return f"| {call} | {row.summary} | {direction} | {', '.join(f'`{x}`' for x in arguments)} |"


class OptimizersTable(Directive):
    """Stands for the table."""

    def run(self) -> list[nodes.Node]:
        """Return the parsed table."""
        node = nodes.container()
        self.state.nested_parse(StringList(table(), source="registry"), self.content_offset, node)
        return node.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("optimizers-table", OptimizersTable)
    return {"parallel_read_safe": True}
