"""Choice of a text by language."""

from collections.abc import Mapping
from typing import TypeVar

Text = TypeVar("Text")

OTHERS = {"no": "nb", "in": "id", "iw": "he", "zh-tw": "zh-hant", "zh-hk": "zh-hant"}


def closest(language: str | None, known: Mapping[str, Text]) -> Text | None:
    """Return the text of a language such as `de`, `pt-BR` or `zh_TW`, or of a wider one.

    Returns None if there is none.
    """
    code = (language or "").lower().replace("_", "-")
    found = None
    while code and not found:
        found = known.get(OTHERS.get(code, code))
        code = code.rpartition("-")[0]
    return found
