"""Docstrings as the house writes them, made reStructuredText.

The docstrings are written to be read as they are: formulas stand in indented blocks, |x| is an
absolute value and * a product. In reStructuredText an indented block is a quotation whose lines are
joined, |x| a substitution and * an emphasis. `as_restructured_text` marks the blocks as literal and
escapes the rest.
"""

import re
from collections.abc import Iterator, Sequence

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
        if text_indent == 0 and _is_table(paragraph):
            result += ["::", "", *(f"    {line}" for line in paragraph), ""]
        elif indent > text_indent and _text_length(paragraph):
            literal_indent = indent
            result += [" " * text_indent + "::", "", *paragraph, ""]
        else:
            length = _text_length(paragraph)
            result += [*map(_escaped, paragraph[:length]), *paragraph[length:], ""]
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


def _text_length(paragraph: Sequence[str]) -> int:
    """Return how many lines of a paragraph stand before its doctest, if it has one."""
    prompts = (n for n, line in enumerate(paragraph) if line.lstrip().startswith(">>>"))
    return next(prompts, len(paragraph))


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
