"""Text for a terminal: what a file's name, a document or a library's message holds can be read and does nothing.

Control, format and unassigned characters become escapes; line breaks and tabs of our own lines stay.
"""

from __future__ import annotations

import json

_KEPT = "\n\t"


def printable(text: str) -> str:
    """The text with every other character that is not for reading as a Python escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT else c.encode("unicode_escape").decode() for c in text)


def printable_json(text: str) -> str:
    """A JSON document with such characters, which are in its strings, as JSON's own escapes."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
