"""Suggest settings for the name of an environment variable that is not a setting."""

import math
import re
from collections.abc import Mapping
from difflib import SequenceMatcher

MAX_SUGGESTIONS = 3
MIN_SPELLING_RATIO = 0.84  # from which one name or word is the other with a typing error
MIN_ABBREVIATION_LENGTH = 4
DESCRIPTION_WEIGHT = 0.4  # of a word in the description, compared with one in the name
FIRST_WORD_WEIGHT = 1.5  # of the first word of the wrong name, which mostly says the subject
LAST_WORD_WEIGHT = 1.3  # of a last word that both names have: it says which kind of value it is
MIN_SCORE = 0.3
MIN_SHARE_OF_BEST = 0.6  # of the best score, from which another setting is suggested too
SYNONYMS = {  # words of other mail servers, and the words of these settings
    "admin": "bootstrap",
    "base": "public",
    "bind": "listen",
    "bucket": "object store",
    "clamav": "clamd",
    "db": "database",
    "debug": "log level",
    "dir": "folder",
    "directory": "folder",
    "letsencrypt": "acme",
    "loglevel": "log level",
    "mysql": "database",
    "path": "folder",
    "port": "listen",
    "postgres": "database",
    "proxy": "proxies",
    "relayhost": "next hop",
    "s3": "object store",
    "session": "tokens",
    "smarthost": "next hop",
    "sqlite": "database",
    "ssl": "tls",
    "token": "key",
    "trash": "deleted",
    "ttl": "retention",
    "verbose": "log level",
}


def suggest_settings(wrong_name: str, descriptions: Mapping[str, str]) -> list[str]:
    """Return the names that resemble a wrong name in spelling or meaning, the best first.

    `descriptions` has the description of each setting by its name. Names have no prefix.
    """
    wrong_words = [
        word
        for written_word in _words(wrong_name)
        for word in SYNONYMS.get(written_word, written_word).split()
    ]
    if not wrong_words:
        return []
    weights = {
        word: 1 / (1 + math.log(1 + sum(_has_word(name, word) for name in descriptions)))
        for word in wrong_words
    }
    weights[wrong_words[0]] *= FIRST_WORD_WEIGHT
    scores = {
        name: _spelling_score(wrong_name, name) or _meaning_score(weights, name, description)
        for name, description in descriptions.items()
    }
    least_score = max(max(scores.values()) * MIN_SHARE_OF_BEST, MIN_SCORE)
    best_names = sorted(scores, key=lambda name: -scores[name])[:MAX_SUGGESTIONS]
    return [name for name in best_names if scores[name] >= least_score]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("-", ""))


def _has_word(text: str, wrong_word: str) -> bool:
    return any(_is_same_or_similar_word(wrong_word, word) for word in _words(text))


def _is_same_or_similar_word(wrong_word: str, word: str) -> bool:
    """True for the same word, its plural or abbreviation (cert), or a typing error in it."""
    if wrong_word == word or {f"{wrong_word}s", wrong_word.removesuffix("s")} & {word}:
        return True
    if len(wrong_word) < MIN_ABBREVIATION_LENGTH:
        return False
    is_misspelled = SequenceMatcher(None, wrong_word, word).ratio() >= MIN_SPELLING_RATIO
    return word.startswith(wrong_word) or is_misspelled


def _spelling_score(wrong_name: str, name: str) -> float:
    """A number above 1 if the names differ by a typing error or by underscores, else 0."""
    joined_wrong_name, joined_name = (name.lower().replace("_", "") for name in (wrong_name, name))
    ratio = SequenceMatcher(None, joined_wrong_name, joined_name).ratio()
    return LAST_WORD_WEIGHT + ratio if ratio >= MIN_SPELLING_RATIO else 0


def _meaning_score(weights: Mapping[str, float], name: str, description: str) -> float:
    """The weighted share of the words that the name or the description has.

    A word in many names has a small weight. Of two settings with the same words, the one with the
    shorter name has the higher score.
    """
    score = 0.0
    for word, weight in weights.items():
        if word == _words(name)[-1] == list(weights)[-1]:
            score += weight * LAST_WORD_WEIGHT
        elif _has_word(name, word):
            score += weight
        elif _has_word(description, word):
            score += weight * DESCRIPTION_WEIGHT
    return score / (sum(weights.values()) + 0.02 * len(_words(name)))
