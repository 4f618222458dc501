"""Keeps the alignment of arrays in docstrings on the pages of the site: Markdown would join their lines to one.

An extension of griffe, which reads the docstrings; docs/mkdocs.yml names it.
"""

import re
from typing import Any

import griffe

ALIGNED = re.compile(r"\S {2,}\S")  # words with more than one space between them


def fenced(docstring: str) -> str:
    """The docstring, each paragraph with aligned columns as a block of code. Tables of Markdown, and paragraphs that are
    indented as a whole, which Markdown shows as code, stay as they are.

    tokens    [5 6 7 8]
    targets   [6 7 8]
    """
    paragraphs = re.split(r"\n\s*?\n", docstring)
    return "\n\n".join(f"```text\n{text}\n```" if _aligned(text) else text for text in paragraphs)


def _aligned(text: str) -> bool:
    lines = text.split("\n")
    if text.startswith("|") or all(line.startswith("    ") for line in lines):
        return False
    return any(ALIGNED.search(line) for line in lines)


class Arrays(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
