"""Show docstrings and signatures as the house writes them: an extension of Sphinx.

The docstrings are written to be read as they are: formulas stand in indented blocks, |x| is an
absolute value and * a product. In reStructuredText an indented block is a quotation whose lines are
joined, |x| a substitution and * an emphasis. `as_restructured_text` marks the blocks as literal and
escapes the rest. Signatures come from the source, where types have short names such as `Hyperparam`
that Sphinx would write out in full.

The directive `module-pages` shows the docstring of each module of a package under the public
functions that the module defines: the page of each rule.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx

_SECTIONS = {"Args:", "Attributes:", "Returns:", "Raises:", "Example:", "Reference:", "References:"}
_CODE = re.compile(r"(`[^`]+`)")
_COLUMNS = re.compile(r"\S {3,}\S")
_EMPHASIS = re.compile(r"(?<![\w*\\])\*(?=\S)([^*`\n]*[^\s*])\*(?![\w*])")


def as_restructured_text(lines: Sequence[str]) -> list[str]:
    """Return a docstring's lines with literal blocks marked and markup characters escaped.

    A paragraph is literal if it is indented deeper than the text above it, or if it is a table of
    unindented text. The content of a Google-style section is text, although it is indented.
    """
    result: list[str] = []
    text_indent = 0
    literal_indent: int | None = None  # of the literal block that the last paragraph belongs to
    for paragraph in _paragraphs(lines):
        indent = _indent(paragraph[0])
        if literal_indent is not None and indent >= literal_indent:
            result += [*paragraph, ""]
            continue
        literal_indent = None
        if paragraph[0].lstrip().startswith(">>>"):
            result += [*paragraph, ""]
        elif text_indent == 0 and _is_table(paragraph):
            result += ["::", "", *(f"    {line}" for line in paragraph), ""]
        elif indent > text_indent:
            literal_indent = indent
            result += [" " * text_indent + "::", "", *paragraph, ""]
        else:
            result += [*map(_escaped, paragraph), ""]
            text_indent = indent + 4 if paragraph[0].strip() in _SECTIONS else indent
    return result


def _paragraphs(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield the lines between empty lines."""
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_table(paragraph: Sequence[str]) -> bool:
    """Whether lines have columns and some of them begin at the margin."""
    return any(map(_COLUMNS.search, paragraph)) and min(map(_indent, paragraph)) == 0


def _escaped(line: str) -> str:
    """Escape the characters of a line that are no markup here, outside of code."""
    parts = _CODE.split(line)
    parts[::2] = map(_escaped_text, parts[::2])
    return "".join(parts)


def _escaped_text(text: str) -> str:
    text = _EMPHASIS.sub("\0\\1\0", text)
    text = re.sub(r"(?<!\\)([*|])", r"\\\1", text)
    return text.replace("\0", "*")


class ModulePages(Directive):
    """Show the docstring of each module of a package under the public functions it defines."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a section for each module, in the order of their names."""
        package = importlib.import_module(self.arguments[0])
        public = {name: getattr(package, name) for name in package.__all__}
        functions = {name: obj for name, obj in public.items() if inspect.isfunction(obj)}
        sections = []
        for entry in pkgutil.iter_modules(package.__path__):
            path = f"{package.__name__}.{entry.name}"
            names = [name for name, obj in functions.items() if obj.__module__ == path]
            if names:
                sections.append(self._section(importlib.import_module(path), names))
        return sections

    def _section(self, module: ModuleType, names: Sequence[str]) -> nodes.section:
        section = nodes.section(ids=[f"page-{name}" for name in names])
        section += nodes.title(text=", ".join(names))
        lines = as_restructured_text((inspect.getdoc(module) or "").splitlines())
        content = StringList(lines, source=module.__file__)
        self.state.nested_parse(content, self.content_offset, section)
        return section


def _convert_docstring(app, what, name, obj, options, lines) -> None:
    lines[:] = as_restructured_text(lines)


def _signature_as_written(app, what, name, obj, options, signature, returns):
    """Return a function's parameters and what it returns, as its source has them."""
    if not inspect.isfunction(obj):
        return None
    node = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    if not isinstance(node, ast.FunctionDef):
        return None
    arguments = node.args
    if what == "method" and arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    returned = ast.unparse(node.returns) if node.returns else ""
    return f"({ast.unparse(arguments)})", returned


def _skip_fields(app, what, name, obj, skip, options) -> bool | None:
    """Skip the fields of a NamedTuple, which the docstring of the class describes."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc; docstrings are converted before Napoleon, of priority 500, reads them."""
    app.add_directive("module-pages", ModulePages)
    app.connect("autodoc-process-docstring", _convert_docstring, priority=100)
    app.connect("autodoc-process-signature", _signature_as_written)
    app.connect("autodoc-skip-member", _skip_fields)
    return {"parallel_read_safe": True}
