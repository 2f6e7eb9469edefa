"""Test word search: both databases agree, for indexed and for new messages."""

import random
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mail.search import index_worker, tokenizer
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.listing import MessageListing
from tests.conftest import GraphQLClient, client_context, deliver_to, raw_message
from tests.support.mail import multipart_message
from tests.support.mail.charset_samples import MESSAGE_TEXT_BY_SUBJECT
from tests.support.operations.message_pages import find_subjects

QUERY_CASES: list[tuple[str, list[str]]] = [
    ("duck", ["Lunch"]),
    ("DUCK quack", ["Lunch"]),
    ("duck swan", []),
    ("duc", []),
    ("duc*", ["Lunch"]),
    ('"the duck pond"', ["Lunch"]),
    ('"pond duck"', []),
    ('"duck pond', ["Lunch"]),
    ("duck -swan", ["Lunch"]),
    ("duck -geese", []),
    ('lunch -"duck pond"', []),
    ("ducks-and-geese", ["Lunch"]),
    ("grusse", ["Grüße aus Köln"]),
    ("GRÜSSE", ["Grüße aus Köln"]),
    ("köln", ["Grüße aus Köln"]),
    ("koln", ["Grüße aus Köln"]),
    ("ko\u0308ln", ["Grüße aus Köln"]),
    ("strasse", ["Grüße aus Köln"]),
    ("straße gesperrt", ["Grüße aus Köln"]),
    ("北京", ["会议通知"]),
    ("北京大学", ["会议通知"]),
    ("北大", []),
    ("会议 明天", ["会议通知"]),
    ("点", ["会议通知"]),
    ("会", ["会议通知"]),
    ("学", ["会议通知"]),
    ("海", []),
    ("東京タワー", ["お知らせ"]),
    ("京都", []),
    ('"東京 tower"', ["お知らせ"]),
    ('"京 tower"', ["お知らせ"]),
    ('"東 tower"', []),
    ("καλημερα", ["Ελληνικά"]),
    ("ΚΌΣΜΕ", ["Ελληνικά"]),
    ("o'reilly", ["O'Reilly (AND) NOT"]),
    ("quoted AND", ["O'Reilly (AND) NOT"]),
    ("quoted or swan", []),
    ("owner:u1u", ["O'Reilly (AND) NOT"]),
    ("carol@example.com duck", ["Lunch"]),
    ("example.com duck", ["Lunch"]),
    ("caro*@example duck", []),
    ("🎉", ["Emoji"]),
    ("👍", ["Emoji"]),
    ("👍🏿", ["Emoji"]),
    ("👩", ["Emoji"]),
    ("🇩🇪", ["Emoji"]),
    ("🇪🇩", []),
    ("❤", ["Emoji"]),
    ("💩", []),
    ("party*🎉", ["Emoji"]),
    ("שלום", ["שלום"]),
    ("שָׁלוֹם עליכם", ["שלום"]),
    ("اهلا", ["Arabic"]),
    ("أهلا وسهلا", ["Arabic"]),
    ("المكتبة", ["Arabic"]),
    ("हिन्दी", ["Hindi"]),
    ("हिन्द*", ["Hindi"]),
    ("भाषा", ["Hindi"]),
    ("भष", []),
    ("หนังสือ", ["Thai"]),
    ("พิมพ์", ["Thai"]),
    ("naive resume", ["Marks"]),
    ("ZURICH", ["Marks"]),
    ("cooperate", ["Marks"]),
    ("fine full", ["Marks"]),
    ('"the needle"', ["Long"]),
    ('"the needle fil"', []),
    ('"end the nee*"', []),
    ('"needle filler"', ["Long"]),
    ("needle the", ["Long"]),
    ("zoe", ["Hidden"]),
    ("zoe@hidden.example", ["Hidden"]),
    ("hidden.example", ["Hidden"]),
    ("ubersicht.log", ["Rich"]),
    ("übersicht", ["Rich"]),
]
ALL_SUBJECTS = sorted([*MESSAGE_TEXT_BY_SUBJECT, "Hidden", "Rich"])
FILTER_CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({"not": {"query": "duck"}}, [subject for subject in ALL_SUBJECTS if subject != "Lunch"]),
    ({"query": "-duck"}, [subject for subject in ALL_SUBJECTS if subject != "Lunch"]),
    ({"or": [{"query": "duck"}, {"query": "北京"}]}, ["Lunch", "会议通知"]),
    ({"or": [{"query": "duck"}, {"subject": "hai"}]}, ["Lunch", "Thai"]),
    ({"or": [{"query": "duck", "seen": True}, {"query": "köln"}]}, ["Grüße aus Köln"]),
    ({"or": [{"query": "-duck"}, {"query": "duck"}]}, ALL_SUBJECTS),
    ({"and": [{"query": "duck"}, {"query": "pond"}], "query": "lunch"}, ["Lunch"]),
    ({"and": [{"query": "duck"}, {"not": {"query": "pond"}}]}, []),
    ({"query": "duck", "not": {"query": "swan"}}, ["Lunch"]),
    ({"not": {"or": [{"query": "the"}, {"not": {"query": "das or *"}}]}}, []),
    ({"not": {"not": {"query": "duck"}}}, ["Lunch"]),
]


async def receive_messages(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, indexed_part: str
) -> None:
    for nth, (subject, body) in enumerate(MESSAGE_TEXT_BY_SUBJECT.items()):
        raw = raw_message("", body=body, Content_Type="text/plain; charset=utf-8")
        await deliver_to(ada, raw.replace(b"Date:", f"Subject: {subject}\r\nDate:".encode(), 1))
        if indexed_part == "half" and nth == len(MESSAGE_TEXT_BY_SUBJECT) // 2:
            assert await index_worker.index_next_batch_and_record_contacts(environment)
    await deliver_to(ada, raw_message("Hidden", body="-", Bcc="Zoe <zoe@hidden.example>"))
    await deliver_to(ada, multipart_message.MULTIPART_MESSAGE)
    await deliver_to(bob, raw_message("Secret", body="duck quack köln 北京 🎉 zoe"))
    if indexed_part == "all":
        assert (
            await index_worker.index_next_batch_and_record_contacts(environment)
            == len(MESSAGE_TEXT_BY_SUBJECT) + 3
        )
        assert await index_worker.index_next_batch_and_record_contacts(environment) == 0


@pytest.mark.parametrize("indexed_part", ["none", "half", "all"])
async def test_messages_are_found_by_words(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, indexed_part: str
) -> None:
    """The result is the same with no, half or all messages in the index."""
    await receive_messages(ada, bob, environment, indexed_part)
    wrong_results = {}
    for query, expected in QUERY_CASES:
        if (answer := await find_subjects(ada, query=query)) != sorted(expected):
            wrong_results[query] = answer
    for condition, expected in FILTER_CASES:
        if (answer := await find_subjects(ada, **condition)) != expected:
            wrong_results[str(condition)] = answer
    assert wrong_results == {}
    assert await find_subjects(bob, query="duck") == ["Secret"]


async def test_indexed_text_length_is_limited(ada: GraphQLClient, environment: Environment) -> None:
    words = " ".join(f"w{n}" for n in range(20_000))
    await deliver_to(ada, raw_message("Early", body=f"early late {words} latest"))
    await deliver_to(
        ada, raw_message("Huge", body="x " * environment.options.search_max_characters + "beyond")
    )
    for _ in range(2):
        assert await find_subjects(ada, query='"early late"') == ["Early"]
        assert await find_subjects(ada, query="latest") == ["Early"]
        assert await find_subjects(ada, query="w19999 latest") == ["Early"]
        assert await find_subjects(ada, query='"w19999 latest"') == []
        assert await find_subjects(ada, query="beyond") == []
        await index_worker.index_next_batch_and_record_contacts(environment)


@given(st.lists(st.tuples(st.integers(0, 140), st.sampled_from(" \n.-_")), max_size=12))
@example([(64, " ")])
@example([(65, " ")])
@example([(1, " "), (64, "."), (65, "-"), (3, " ")])
def test_long_words_are_truncated(words: list[tuple[int, str]]) -> None:
    text = "".join(
        "Duck"[: n % 5] + "x" * (n - min(n, n % 5)) + separator for n, separator in words
    )
    folded = "".join(character if character.isalnum() else " " for character in text.lower())
    assert tokenizer.split_words(text) == [word[:64] for word in folded.split()]


WORD_PARTS = [
    "ab",
    "AB",
    "ba",
    "äb",
    "a\u0308b",
    "b",
    "京",
    "東京",
    "都",
    "🎉",
    "👍",
    "ก",
    "한국",
    "국",
    "ß",
    "ss",
]
SEPARATORS = [" ", "  ", "-", "", "\n", ".", "_"]
UNDIVIDED_RANGES = ((0xE00, 0xEFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3))


def character_class(character: str) -> str:
    if any(low <= ord(character) <= high for low, high in UNDIVIDED_RANGES):
        return "undivided"
    if character.isalnum():
        return "word"
    return "sign" if unicodedata.category(character) == "So" else ""


def split_runs(text: str) -> list[tuple[str, str]]:
    """Split a text into runs of words, signs and undivided scripts."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    folded = "".join(character for character in folded if not unicodedata.combining(character))
    runs: list[tuple[str, str]] = []
    previous_kind = ""
    for character in unicodedata.normalize("NFC", folded):
        kind = character_class(character)
        if kind and kind == previous_kind and kind != "sign":
            runs[-1] = kind, runs[-1][1] + character
        elif kind:
            runs.append((kind, character))
        previous_kind = kind
    return runs


def contains_phrase(
    runs: list[tuple[str, str]], phrase: list[tuple[str, str]], *, is_prefix: bool
) -> bool:
    """Return true if the phrase occurs in consecutive runs.

    In an undivided script, the phrase can begin inside its first and end inside its last run.
    """

    def fits(nth: int, phrase_part: tuple[str, str], run: tuple[str, str]) -> bool:
        kind, letters = phrase_part
        if run[0] != kind:
            return False
        first, last = nth == 0, nth == len(phrase) - 1
        if kind == "undivided" and first and last:
            return letters in run[1]
        if kind == "undivided" and (first or last):
            return run[1].endswith(letters) if first else run[1].startswith(letters)
        return run[1].startswith(letters) if last and is_prefix else run[1] == letters

    starts = range(len(runs) - len(phrase) + 1)
    return any(
        all(fits(n, phrase_part, runs[start + n]) for n, phrase_part in enumerate(phrase))
        for start in starts
    )


def matches_query(runs: list[tuple[str, str]], query: list[tuple[str, str, str]]) -> bool:
    """Return true if a message matches the query. Slow reference implementation."""
    return all(
        contains_phrase(runs, phrase, is_prefix=star == "*") is not (minus == "-")
        for minus, text, star in query
        if (phrase := split_runs(text))
    )


def random_query(generator: random.Random) -> list[tuple[str, str, str]]:
    terms = []
    for _ in range(generator.randint(1, 3)):
        phrase = generator.random() < 0.4
        joiners = [" "] if phrase else ["", "-"]
        parts = generator.choices(WORD_PARTS, k=generator.randint(1, 3 if phrase else 2))
        text = generator.choice(joiners).join(parts)
        star = "" if phrase or generator.random() < 0.6 else "*"
        terms.append((generator.choice(["", "", "-"]), text, star or ('"' if phrase else "")))
    return terms


def query_text(query: list[tuple[str, str, str]]) -> str:
    return " ".join(
        f'{minus}"{text}"' if end == '"' else f"{minus}{text}{end}" for minus, text, end in query
    )


async def test_random_searches_agree_with_reference_implementation(
    ada: GraphQLClient, environment: Environment
) -> None:
    generator = random.Random(7)  # noqa: S311
    texts: dict[str, str] = {}
    for nth in range(24):
        body = "".join(
            generator.choice(WORD_PARTS) + generator.choice(SEPARATORS)
            for _ in range(generator.randint(1, 9))
        )
        texts[f"N{nth}"] = body
        content_type = "text/plain; charset=utf-8"
        await deliver_to(ada, raw_message(f"N{nth}", body=body, Content_Type=content_type))
        if nth == 12:
            await index_worker.index_next_batch_and_record_contacts(environment)
    runs = {subject: split_runs(body) for subject, body in texts.items()}
    ctx = client_context(ada)
    partial_matches = 0
    for _ in range(150):
        query = random_query(generator)
        conditions = MessageConditions(query=query_text(query))
        listing = MessageListing(
            ada.user.id,
            PageRequest("received-", 100),
            frozenset({"subject"}),
            conditions=conditions,
        )
        (page,) = await message_loaders.load_visible_message_pages(ctx, [listing])
        expected = {
            subject for subject, message_runs in runs.items() if matches_query(message_runs, query)
        }
        assert {row.subject for row in page.rows} == expected, conditions.query
        partial_matches += 0 < len(expected) < len(runs)
        ctx.clear_loaded()
    assert partial_matches > 60  # enough queries match some messages but not all
