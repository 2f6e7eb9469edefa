"""Texts are divided into words quickly, and as one pattern divides the whole folded text."""

import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mail.search import tokenizer
from mail.search.tokenizer import MAX_WORD_LENGTH
from models.store.text_folding import fold_text
from tests.support.mail.charset_samples import (
    CHARSET_CODECS,
    MESSAGE_TEXT_BY_SUBJECT,
    MULTISCRIPT_TEXT,
    text_in_codec,
)
from tests.support.mail.hostile_messages import letters

ENGLISH = "Please find attached the minutes of our last meeting, as agreed.\n"
BLOCK = 1024  # characters of one text
SHORT = 2000  # bytes of a message
PLANES = (*range(0, 0x3400, BLOCK), *range(0xA000, 0x20000, BLOCK), 0xE0000)  # others are alike
ROUNDS, EACH = 7, 20


def reference(text: str) -> list[str]:
    """Return the words that the patterns find in the whole text."""
    plain, found = fold_text(text), list[str]()
    mixed = tokenizer._HAS_MARKS_OR_SYMBOLS.search(plain)  # noqa: SLF001 - the patterns of a slow way
    pattern = tokenizer._non_ascii_word_pattern() if mixed else tokenizer._WORD  # noqa: SLF001
    for run in pattern.findall(plain):
        at = 0
        for undivided in tokenizer._UNDIVIDED.finditer(run):  # noqa: SLF001
            found += [run[at : undivided.start()][:MAX_WORD_LENGTH]] * (undivided.start() > at)
            signs = undivided.group()
            found += [*(a + b for a, b in pairwise(signs)), signs[-1]]
            at = undivided.end()
        found += [run[at:][:MAX_WORD_LENGTH]] * (at < len(run))
    return found


CORPUS = [
    MULTISCRIPT_TEXT,
    *(text_in_codec(codec) for codec in CHARSET_CODECS),
    *MESSAGE_TEXT_BY_SUBJECT.values(),
    *(raw[:SHORT].decode(errors="replace") for raw in letters().values()),
    *(raw[:SHORT].decode("latin-1") for raw in letters().values()),
    "\xa0", "\xb4 \xa8", "A\u030a e\u0301", "a_b\uff3fc", "x\u2028y\x85z\x1cw", "\ud800 a\udfffb é",
    "1️⃣ #️⃣ ≠ =\u0338", "\u0e33 \u0903a", "ﷺ", "İstanbul ẞ ﬁn", "é" * 100, "ab" * 50 + " é",
]  # fmt: skip


@pytest.mark.parametrize("around", ["{}", ENGLISH + "{}" + ENGLISH, "x{}y", "日{}🎉 ñ"])
def test_a_text_has_the_words_of_the_whole_pattern(around: str) -> None:
    for text in CORPUS:
        whole = around.format(text) if "{" not in text else around.replace("{}", text)
        assert tokenizer.split_words(whole) == reference(whole), ascii(text[:200])


def test_every_character_is_divided_as_by_the_whole_pattern() -> None:
    for start in PLANES:
        signs = map(chr, range(start, start + BLOCK))
        text = " ".join(f"a{sign}b {sign} {sign}Z, 1{sign}-{sign}2" for sign in signs)
        assert tokenizer.split_words(text) == reference(text), hex(start)


@settings(max_examples=500, deadline=None)
@given(some.text(some.one_of(some.characters(), some.sampled_from("ab \n_-.é\u0301ß日本🎉ि한"))))
def test_random_texts_have_the_words_of_the_whole_pattern(text: str) -> None:
    assert tokenizer.split_words(text) == reference(text)


def test_long_texts_have_the_words_of_the_whole_pattern() -> None:
    for text in (MULTISCRIPT_TEXT + " ", ENGLISH + "é ", "Straße, "):
        long = text * (200_000 // len(text))
        assert tokenizer.split_words(long) == reference(long)


def _cpu(work: Callable[[], object]) -> float:
    rounds = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(EACH):
            work()
        rounds.append(time.thread_time() - began)
    return min(rounds)


def test_one_accent_costs_little() -> None:
    plain = ENGLISH * 64
    ascii_ = _cpu(lambda: tokenizer.split_words(plain))
    accent = _cpu(lambda: tokenizer.split_words(plain + "Müller\n"))
    assert accent < 3 * ascii_
