"""Entries that the thread of the recorder builds, and the shortcuts for their usual texts."""

import re
import threading
from collections.abc import Iterator
from enum import StrEnum
from itertools import product
from typing import Any

import orjson
import pytest

from models.logs import recorder
from models.logs.entries import (
    MAX_FIELD_LENGTH,
    MAX_FIELDS,
    MAX_INT64,
    MAX_LIST_ITEMS,
    NewLogEntry,
    _bounded_json_fields,
    storable_entry,
    text_words,
)
from models.logs.recorder import LOST_ENTRIES, MAX_WAITING
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.stores.log_stores import log_messages, new_entry


class Colour(StrEnum):
    RED = "RED"


class UnprintableValue:
    def __str__(self) -> str:
        return "\x1b[2J"


PLAIN_FIELDS: list[dict[str, Any]] = [
    {},
    {"text": "from <bob@example.com>", "none": None, "empty": ""},
    {"number": 1, "float": 1.5, "true": True, "smallest": -MAX_INT64, "largest": MAX_INT64},
    {"recipients": ["ada@example.org", "bob@example.org"], "symbols": []},
]
OTHER_FIELDS: list[dict[str, Any]] = [
    *({"text": f"a{character}b"} for character in ("\x00", "\n", "\x1b", "\x7f", "\x9b", "\u202e")),
    *({"texts": ["a", f"b{character}"]} for character in ("\x00", "\x7f", "\ue000", "\ud800")),
    {"quoted": 'say "yes" \\ no', "accents": "éàü"},
    {"name\x7f": "x"},
    {"too large": MAX_INT64 + 1},
    {"too small": -MAX_INT64 - 1, "huge": 1 << 70},
    {"long": "x" * (MAX_FIELD_LENGTH + 1)},
    {"long": ["x" * (MAX_FIELD_LENGTH + 1)]},
    {"many": ["x"] * (MAX_LIST_ITEMS + 1)},
    {f"f{number}": 1 for number in range(MAX_FIELDS + 1)},
    {"nested": [[1, "a\x7f"]], "object": {"inner": "a\nb"}, "tuple": ("a",), "set": {"a"}},
    {"enum": Colour.RED, "enums": [Colour.RED], "bytes": b"\xff", "value": UnprintableValue()},
]


def test_fields_that_are_stored_as_they_are_equal_cleaned_fields(environment: Environment) -> None:
    for case in each_case([*PLAIN_FIELDS, *OTHER_FIELDS]):
        with case as fields:
            row = storable_entry(new_entry(environment, "m", fields=fields)).row
            cleaned = _bounded_json_fields({name: v for name, v in fields.items() if v is not None})
            assert row.fields == orjson.dumps(cleaned).decode()


def test_nested_lists_of_any_size_are_never_written_whole(environment: Environment) -> None:
    nested: Any = "x"
    for _ in range(60):
        nested = [nested, nested]  # 2 ** 60 texts
    row = storable_entry(new_entry(environment, "m", fields={"list": nested})).row
    assert len(row.fields) < 200


def test_words_of_ascii_text_are_its_letters_and_digits_in_lower_case() -> None:
    for left, right in product(map(chr, range(128)), repeat=2):
        text = f"{left}x{right} Yz{left}{right}"
        words = re.findall(r"[^\W_]+", text.lower())
        assert text_words(text) == list(dict.fromkeys(words))
        assert text_words(f"{text} é") == list(dict.fromkeys([*words, "e"]))


async def test_unbuilt_entries_are_built_by_the_thread_in_their_order(
    log_environment: Environment, root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "WRITE_DELAY", 3600)  # which a flush does not wait for
    thread_names = set[str]()

    def build_entries() -> Iterator[NewLogEntry]:
        for number in (1, 2):
            thread_names.add(threading.current_thread().name)
            yield new_entry(log_environment, f"built {number}")

    log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, "built 0"))
    log_environment.logs.record_unbuilt(build_entries(), 2, 2000)
    assert log_environment.logs.waiting_count == 3
    log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, "built 3"))
    assert await log_environment.logs.flush_within_timeout()
    assert not vars(log_environment.logs)["_may_write_now"].is_set()  # later ones are collected
    assert (log_environment.logs.waiting_count, log_environment.logs.waiting_size) == (0, 0)
    assert await log_messages(root, query="built") == [f"built {number}" for number in range(4)]
    assert thread_names == {"log-writer"}


async def test_entries_that_can_not_be_built_lose_no_others(
    log_environment: Environment, root: GraphQLClient
) -> None:
    def fail_to_build() -> Iterator[NewLogEntry]:
        yield new_entry(log_environment, "incomplete")
        raise ValueError

    before = LOST_ENTRIES.value("unstorable")
    log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, "complete 0"))
    log_environment.logs.record_unbuilt(fail_to_build(), 5, 1)
    log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, "complete 1"))
    assert await log_messages(root, components=["MTA"]) == ["complete 0", "complete 1"]
    assert LOST_ENTRIES.value("unstorable") - before == 5


async def test_flood_of_unbuilt_entries_is_bounded_by_their_number(
    log_environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "WRITE_DELAY", 3600)
    before = LOST_ENTRIES.value("queue full")
    may_build = threading.Event()

    def build_entries(count: int) -> Iterator[NewLogEntry]:
        may_build.wait(10)
        for number in range(count):
            yield new_entry(log_environment, f"flood {number}")

    for _ in range(30):
        log_environment.logs.record_unbuilt(build_entries(1000), 1000, 1)
        assert log_environment.logs.waiting_count <= MAX_WAITING
    assert LOST_ENTRIES.value("queue full") - before == 30_000 - MAX_WAITING
    may_build.set()
    assert await log_environment.logs.flush_within_timeout()
    assert log_environment.logs.waiting_count == 0
