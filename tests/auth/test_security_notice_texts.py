"""Security notices exist in every language of the quota warnings."""

from dataclasses import astuple
from string import Formatter

from resolvers.auth import security_message_texts
from resolvers.users.quota import quota_warning_texts


def placeholder_names(text: str) -> set[str | None]:
    """The names of the placeholders in a text."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_each_language_has_all_texts_and_placeholders() -> None:
    assert set(security_message_texts.TEXTS_BY_LANGUAGE) == set(
        quota_warning_texts.TEXTS_BY_LANGUAGE
    ) | {"en"}
    english = [placeholder_names(text) for text in astuple(security_message_texts.ENGLISH_TEXTS)]
    for texts in security_message_texts.TEXTS_BY_LANGUAGE.values():
        assert all(astuple(texts))
        assert [placeholder_names(text) for text in astuple(texts)] == english
