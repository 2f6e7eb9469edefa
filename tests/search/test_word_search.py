"""Words: what is found of a message, alike on both stores, in the index and before it is there."""

import random
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from mail.search import index_worker, tokenizer
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.loaders import MessageListing
from tests.conftest import Client, context, raw_message, receive
from tests.support.mail import multipart_message
from tests.support.mail.charset_samples import MESSAGE_TEXT_BY_SUBJECT
from tests.support.operations.message_pages import found

SEARCHES: list[tuple[str, list[str]]] = [
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
EVERYBODY = sorted([*MESSAGE_TEXT_BY_SUBJECT, "Hidden", "Rich"])
NESTED: list[tuple[dict[str, Any], list[str]]] = [
    ({"not": {"query": "duck"}}, [one for one in EVERYBODY if one != "Lunch"]),
    ({"query": "-duck"}, [one for one in EVERYBODY if one != "Lunch"]),
    ({"or": [{"query": "duck"}, {"query": "北京"}]}, ["Lunch", "会议通知"]),
    ({"or": [{"query": "duck"}, {"subject": "hai"}]}, ["Lunch", "Thai"]),
    ({"or": [{"query": "duck", "seen": True}, {"query": "köln"}]}, ["Grüße aus Köln"]),
    ({"or": [{"query": "-duck"}, {"query": "duck"}]}, EVERYBODY),
    ({"and": [{"query": "duck"}, {"query": "pond"}], "query": "lunch"}, ["Lunch"]),
    ({"and": [{"query": "duck"}, {"not": {"query": "pond"}}]}, []),
    ({"query": "duck", "not": {"query": "swan"}}, ["Lunch"]),
    ({"not": {"or": [{"query": "the"}, {"not": {"query": "das or *"}}]}}, []),
    ({"not": {"not": {"query": "duck"}}}, ["Lunch"]),
]


async def _letters(ada: Client, bob: Client, world: Environment, known: str) -> None:
    for nth, (subject, body) in enumerate(MESSAGE_TEXT_BY_SUBJECT.items()):
        raw = raw_message("", body=body, Content_Type="text/plain; charset=utf-8")
        await receive(ada, raw.replace(b"Date:", f"Subject: {subject}\r\nDate:".encode(), 1))
        if known == "half" and nth == len(MESSAGE_TEXT_BY_SUBJECT) // 2:
            assert await index_worker.index_next_batch(world)
    await receive(ada, raw_message("Hidden", body="-", Bcc="Zoe <zoe@hidden.example>"))
    await receive(ada, multipart_message.RICH)
    await receive(bob, raw_message("Secret", body="duck quack köln 北京 🎉 zoe"))
    if known == "all":
        assert await index_worker.index_next_batch(world) == len(MESSAGE_TEXT_BY_SUBJECT) + 3
        assert await index_worker.index_next_batch(world) == 0


@pytest.mark.parametrize("known", ["none", "half", "all"])
async def test_mail_is_found_by_its_words(
    ada: Client, bob: Client, world: Environment, known: str
) -> None:
    """Behind the delivery by reading it, then by the index: they always agree."""
    await _letters(ada, bob, world, known)
    wrong = {}
    for query, expected in SEARCHES:
        if (answer := await found(ada, query=query)) != sorted(expected):
            wrong[query] = answer
    for condition, expected in NESTED:
        if (answer := await found(ada, **condition)) != expected:
            wrong[str(condition)] = answer
    assert wrong == {}
    assert await found(bob, query="duck") == ["Secret"]


async def test_only_so_much_of_a_message_is_indexed(ada: Client, world: Environment) -> None:
    words = " ".join(f"w{n}" for n in range(20_000))
    await receive(ada, raw_message("Early", body=f"early late {words} latest"))
    await receive(ada, raw_message("Huge", body="x " * world.options.search_text + "beyond"))
    for _ in range(2):
        assert await found(ada, query='"early late"') == ["Early"]
        assert await found(ada, query="latest") == ["Early"]
        assert await found(ada, query="w19999 latest") == ["Early"]
        assert await found(ada, query='"w19999 latest"') == []
        assert await found(ada, query="beyond") == []
        await index_worker.index_next_batch(world)


@given(some.lists(some.tuples(some.integers(0, 140), some.sampled_from(" \n.-_")), max_size=12))
@example([(64, " ")])
@example([(65, " ")])
@example([(1, " "), (64, "."), (65, "-"), (3, " ")])
def test_long_words_are_cut_wherever_they_stand(words: list[tuple[int, str]]) -> None:
    text = "".join("Duck"[: n % 5] + "x" * (n - min(n, n % 5)) + blank for n, blank in words)
    plain = "".join(letter if letter.isalnum() else " " for letter in text.lower())
    assert tokenizer.split_words(text) == [word[:64] for word in plain.split()]


# a slow filter, which says the same

ALPHABET = ["ab", "AB", "ba", "äb", "a\u0308b", "b", "京", "東京", "都", "🎉", "👍", "ก", "ß", "ss"]
BETWEEN = [" ", "  ", "-", "", "\n", ".", "_"]
UNDIVIDED = ((0xE00, 0xEFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF))


def _kind(letter: str) -> str:
    if any(low <= ord(letter) <= high for low, high in UNDIVIDED):
        return "undivided"
    if letter.isalnum():
        return "word"
    return "sign" if unicodedata.category(letter) == "So" else ""


def _runs(text: str) -> list[tuple[str, str]]:
    """The words of a text, letter by letter."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    runs: list[tuple[str, str]] = []
    before = ""
    for letter in unicodedata.normalize("NFC", plain):
        kind = _kind(letter)
        if kind and kind == before and kind != "sign":
            runs[-1] = kind, runs[-1][1] + letter
        elif kind:
            runs.append((kind, letter))
        before = kind
    return runs


def _said(runs: list[tuple[str, str]], phrase: list[tuple[str, str]], *, begun: bool) -> bool:
    """Whether these runs stand in a row: the first may begin, the last end, inside undivided."""

    def fits(nth: int, asked: tuple[str, str], run: tuple[str, str]) -> bool:
        kind, letters = asked
        if run[0] != kind:
            return False
        first, last = nth == 0, nth == len(phrase) - 1
        if kind == "undivided" and first and last:
            return letters in run[1]
        if kind == "undivided" and (first or last):
            return run[1].endswith(letters) if first else run[1].startswith(letters)
        return run[1].startswith(letters) if last and begun else run[1] == letters

    starts = range(len(runs) - len(phrase) + 1)
    return any(all(fits(n, asked, runs[at + n]) for n, asked in enumerate(phrase)) for at in starts)


def _slowly(runs: list[tuple[str, str]], query: list[tuple[str, str, str]]) -> bool:
    return all(
        _said(runs, asked, begun=star == "*") is not (minus == "-")
        for minus, text, star in query
        if (asked := _runs(text))
    )


def _query(dice: random.Random) -> list[tuple[str, str, str]]:
    terms = []
    for _ in range(dice.randint(1, 3)):
        phrase = dice.random() < 0.4
        inside = [" "] if phrase else ["", "-"]
        parts = dice.choices(ALPHABET, k=dice.randint(1, 3 if phrase else 2))
        text = dice.choice(inside).join(parts)
        star = "" if phrase or dice.random() < 0.6 else "*"
        terms.append((dice.choice(["", "", "-"]), text, star or ('"' if phrase else "")))
    return terms


def _spelled(query: list[tuple[str, str, str]]) -> str:
    return " ".join(
        f'{minus}"{text}"' if end == '"' else f"{minus}{text}{end}" for minus, text, end in query
    )


async def test_all_searches_say_what_a_slow_filter_says(ada: Client, world: Environment) -> None:
    dice = random.Random(7)  # noqa: S311
    texts: dict[str, str] = {}
    for nth in range(24):
        body = "".join(
            dice.choice(ALPHABET) + dice.choice(BETWEEN) for _ in range(dice.randint(1, 9))
        )
        texts[f"N{nth}"] = body
        plain = "text/plain; charset=utf-8"
        await receive(ada, raw_message(f"N{nth}", body=body, Content_Type=plain))
        if nth == 12:
            await index_worker.index_next_batch(world)
    runs = {subject: _runs(body) for subject, body in texts.items()}
    ctx = context(ada)
    several = 0
    for _ in range(150):
        query = _query(dice)
        where = MessageConditions(query=_spelled(query))
        key = MessageListing(
            ada.user.id, PageRequest("received-", 100), frozenset({"subject"}), conditions=where
        )
        (page,) = await message_loaders.load_pages(ctx, [key])
        expected = {subject for subject, one in runs.items() if _slowly(one, query)}
        assert {row.subject for row in page.rows} == expected, where.query
        several += 0 < len(expected) < len(runs)
        ctx.clear_loaded()
    assert several > 60  # the texts and searches meet often enough to tell
