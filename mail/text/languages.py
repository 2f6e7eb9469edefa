"""Choice of a text by language."""

from collections.abc import Mapping
from typing import TypeVar

Text = TypeVar("Text")

EQUIVALENT_CODES = {"no": "nb", "in": "id", "iw": "he", "zh-tw": "zh-hant", "zh-hk": "zh-hant"}


def text_in_language(language: str | None, texts_by_language: Mapping[str, Text]) -> Text | None:
    """Return the text of a language such as `de`, `pt-BR` or `zh_TW`, or of a wider one.

    Returns None if there is none.
    """
    code = (language or "").lower().replace("_", "-")
    text_or_none = None
    while code and not text_or_none:
        text_or_none = texts_by_language.get(EQUIVALENT_CODES.get(code, code))
        code = code.rpartition("-")[0]
    return text_or_none
