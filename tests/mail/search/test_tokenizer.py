"""The tokenizer splits text like its regular expression on the whole folded text, but faster."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.search import tokenizer
from mail.search.tokenizer import MAX_WORD_LENGTH
from models.store.text_folding import fold_text
from tests.support.growth import assert_cpu_ratio
from tests.support.mail.charset_samples import (
    CHARSET_CODECS,
    MESSAGE_TEXT_BY_SUBJECT,
    MULTISCRIPT_TEXT,
    text_in_codec,
)
from tests.support.mail.hostile_messages import hostile_messages

ENGLISH_TEXT = "Please find attached the minutes of our last meeting, as agreed.\n"
BLOCK_SIZE = 1024  # characters
SAMPLE_BYTES = 2000  # bytes of a message that are used
# Other blocks have no special characters.
BLOCK_STARTS = (
    *range(0, 0x3400, BLOCK_SIZE),
    *range(0xA000, 0x20000, BLOCK_SIZE),
    0xE0000,
)


def words_by_pattern(text: str) -> list[str]:
    """Return the words that the regular expressions find in the whole text."""
    folded, words = fold_text(text), list[str]()
    has_marks = tokenizer._HAS_MARKS_OR_SYMBOLS.search(folded)  # noqa: SLF001 - the reference
    pattern = tokenizer._non_ascii_word_pattern() if has_marks else tokenizer._WORD  # noqa: SLF001
    for run in pattern.findall(folded):
        position = 0
        for undivided in tokenizer._UNDIVIDED.finditer(run):  # noqa: SLF001
            words += [run[position : undivided.start()][:MAX_WORD_LENGTH]] * (
                undivided.start() > position
            )
            characters = undivided.group()
            words += [*(a + b for a, b in pairwise(characters)), characters[-1]]
            position = undivided.end()
        words += [run[position:][:MAX_WORD_LENGTH]] * (position < len(run))
    return words


CORPUS = [
    MULTISCRIPT_TEXT,
    *(text_in_codec(codec) for codec in CHARSET_CODECS),
    *MESSAGE_TEXT_BY_SUBJECT.values(),
    *(raw[:SAMPLE_BYTES].decode(errors="replace") for raw in hostile_messages().values()),
    *(raw[:SAMPLE_BYTES].decode("latin-1") for raw in hostile_messages().values()),
    "\xa0", "\xb4 \xa8", "A\u030a e\u0301", "a_b\uff3fc", "x\u2028y\x85z\x1cw", "\ud800 a\udfffb é",
    "1️⃣ #️⃣ ≠ =\u0338", "\u0e33 \u0903a", "ﷺ", "İstanbul ẞ ﬁn", "é" * 100, "ab" * 50 + " é",
]  # fmt: skip


@pytest.mark.parametrize("template", ["{}", ENGLISH_TEXT + "{}" + ENGLISH_TEXT, "x{}y", "日{}🎉 ñ"])
def test_text_is_split_like_by_pattern(template: str) -> None:
    for text in CORPUS:
        full_text = template.format(text) if "{" not in text else template.replace("{}", text)
        assert tokenizer.split_words(full_text) == words_by_pattern(full_text), ascii(text[:200])


def test_every_character_is_split_like_by_pattern() -> None:
    for start in BLOCK_STARTS:
        characters = map(chr, range(start, start + BLOCK_SIZE))
        text = " ".join(
            f"a{character}b {character} {character}Z, 1{character}-{character}2"
            for character in characters
        )
        assert tokenizer.split_words(text) == words_by_pattern(text), hex(start)


@settings(max_examples=500)
@given(st.text(st.one_of(st.characters(), st.sampled_from("ab \n_-.é\u0301ß日本🎉ि한"))))
def test_random_text_is_split_like_by_pattern(text: str) -> None:
    assert tokenizer.split_words(text) == words_by_pattern(text)


def test_long_text_is_split_like_by_pattern() -> None:
    for text in (MULTISCRIPT_TEXT + " ", ENGLISH_TEXT + "é ", "Straße, "):
        long_text = text * (200_000 // len(text))
        assert tokenizer.split_words(long_text) == words_by_pattern(long_text)


def test_one_accent_does_not_slow_tokenizer() -> None:
    ascii_text = ENGLISH_TEXT * 4000  # the accent costs 0.1 ms, which is much for a short text
    tokenizer.split_words("é")  # makes the pattern, which is then cached
    assert_cpu_ratio(
        lambda: tokenizer.split_words(ascii_text + "Müller\n"),
        lambda: tokenizer.split_words(ascii_text),
        max_ratio=3,
    )
