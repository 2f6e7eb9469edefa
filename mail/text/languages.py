"""Which language of those we know is meant."""

from collections.abc import Mapping
from typing import TypeVar

Text = TypeVar("Text")

OTHERS = {"no": "nb", "in": "id", "iw": "he", "zh-tw": "zh-hant", "zh-hk": "zh-hant"}


def closest(language: str | None, known: Mapping[str, Text]) -> Text | None:
    """What is known in a language such as `de`, `pt-BR` or `zh_TW`, or else in a wider one."""
    code = (language or "").lower().replace("_", "-")
    found = None
    while code and not found:
        found = known.get(OTHERS.get(code, code))
        code = code.rpartition("-")[0]
    return found
