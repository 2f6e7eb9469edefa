"""Security messages exist in every language of the other messages of the system."""

from dataclasses import astuple
from string import Formatter

from resolvers import limitwords
from resolvers.credentials import securitywords


def places(text: str) -> set[str | None]:
    """The names that are filled into a text."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_every_language_has_all_sentences() -> None:
    assert set(securitywords.WORDS) == set(limitwords.WORDS) | {"en"}
    english = [places(text) for text in astuple(securitywords.ENGLISH)]
    for words in securitywords.WORDS.values():
        assert all(astuple(words))
        assert [places(text) for text in astuple(words)] == english
