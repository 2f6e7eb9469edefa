"""Choice of the language of an OAuth page."""

from graph.oauth.texts.german_spanish_french import FRENCH, GERMAN, SPANISH
from graph.oauth.texts.italian_dutch_portuguese import DUTCH, ITALIAN, PORTUGUESE
from graph.oauth.texts.page_texts import ENGLISH, OauthPageTexts
from mail.text.languages import text_in_language

TEXTS_BY_LANGUAGE = {
    texts.language: texts
    for texts in (GERMAN, ENGLISH, SPANISH, FRENCH, ITALIAN, DUTCH, PORTUGUESE)
}
MAX_HEADER_LENGTH = 200  # characters of Accept-Language
MAX_LANGUAGES = 10  # of Accept-Language


def texts_for_browser(accept_language: str, user_language: str | None = None) -> OauthPageTexts:
    """Return the texts in the first language of the browser that exists.

    If none exists, the texts are in the language of the user, else in English.
    """
    weighted = []
    parts = accept_language[:MAX_HEADER_LENGTH].split(",")[:MAX_LANGUAGES]
    for position, part in enumerate(parts):
        language, _, parameter = part.strip().partition(";")
        weighted.append((-_quality(parameter), position, language.strip()))
    for _, _, language in sorted(weighted):
        if texts := text_in_language(language, TEXTS_BY_LANGUAGE):
            return texts
    return text_in_language(user_language, TEXTS_BY_LANGUAGE) or ENGLISH


def _quality(parameter: str) -> float:
    """Return the weight of a language, 1 by default (RFC 9110, section 12.4.2)."""
    name, _, value = parameter.strip().partition("=")
    try:
        return float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 0.0
