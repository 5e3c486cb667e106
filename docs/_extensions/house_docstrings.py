"""Show docstrings and signatures as the house writes them: an extension of Sphinx.

Docstrings are converted by `restructured`. Signatures come from the source, where types have short
names such as `Hyperparam` that Sphinx would write out in full. The directive `module-pages` shows
the docstring of each module of a package under the public functions that the module defines: the
page of each rule.
"""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Sequence
from types import ModuleType

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from restructured import as_restructured_text
from sphinx.application import Sphinx


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
