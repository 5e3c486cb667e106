"""Configuration of Sphinx: `sphinx-build -W -b html docs site`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent / "_extensions")]

import optlab  # noqa: E402, the checkout's own, whether or not it is installed

project = "optlab"
author = copyright = "The optlab authors"
version = release = optlab.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["house_docstrings", "registry_table"]
exclude_patterns = ["_extensions", "_static"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"optlab {release}"
html_static_path = ["_static"]
html_css_files = ["optlab.css"]
html_copy_source = False
html_show_sphinx = False

smartquotes = False  # "min" and "" are code, also where a docstring does not mark them
default_role = "code"  # a name between single backquotes is code, as in Markdown
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # `house_docstrings` writes signatures as the source has them
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Reference"]
python_maximum_signature_line_length = 76
