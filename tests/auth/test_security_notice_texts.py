"""Security messages exist in every language of the other messages of the system."""

from dataclasses import astuple
from string import Formatter

from resolvers.auth import security_message_texts
from resolvers.users.quota import quota_warning_texts


def places(text: str) -> set[str | None]:
    """The names that are filled into a text."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_every_language_has_all_sentences() -> None:
    assert set(security_message_texts.TEXTS_BY_LANGUAGE) == set(
        quota_warning_texts.TEXTS_BY_LANGUAGE
    ) | {"en"}
    english = [places(text) for text in astuple(security_message_texts.ENGLISH_TEXTS)]
    for words in security_message_texts.TEXTS_BY_LANGUAGE.values():
        assert all(astuple(words))
        assert [places(text) for text in astuple(words)] == english
