"""Rows of lists that are completed once: answers, changes, limits of memory, odd texts."""

import json
from collections.abc import Sequence
from typing import Any

import httpx
import orjson
import pytest
from graphql import GraphQLField, GraphQLObjectType, get_named_type, is_leaf_type

from graph.execution.completed_rows import MAX_ROW_BYTES, ROW_COUNTS, RowsFunction
from graph.execution.response_size import ResponseBudget, ResponseTooLarge
from graph.http.graphql_request import encode_json
from graph.schema import schema
from models.runtime import row_cache
from models.runtime.row_cache import ENTRY_OVERHEAD, MAX_ENTRY_BYTES, CompletedRow, RowCache
from tests.conftest import GraphQLClient, ManualClock, deliver_to, raw_message

MESSAGES = "{ user { messages(first: 10) { nodes { %s } } } }"
MAILBOXES = "{ user { mailboxes { nodes { %s } } } }"
READS_UNTIL_CACHED = 4  # the first compiles nothing, the second and third complete each row
CHANGE = """mutation ($id: ID!) { messageUpdate(input: {select: {ids: [$id]}, set: {seen: true}}) {
  errors { message } } }"""


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> RowCache:
    """Return an empty cache, which is in use."""
    cache = RowCache()
    monkeypatch.setattr(row_cache, "ROW_CACHE", cache)
    ROW_COUNTS.clear()
    return cache


async def read_body(client: GraphQLClient, document: str) -> bytes:
    response = await client.http.post("/graphql", json={"query": document}, headers=client.headers)
    assert "errors" not in response.json(), response.text
    return response.content.partition(b',"extensions"')[0] + b"}"


def field_selections(type_name: str) -> list[str]:
    """The selection of each field without arguments, with the leaf fields of its objects."""
    object_type = schema._schema.get_type(type_name)  # noqa: SLF001 - the schema of graphql-core
    assert isinstance(object_type, GraphQLObjectType)
    selections = []
    for name, field in object_type.fields.items():
        below = get_named_type(field.type)
        if field.args or (not is_leaf_type(below) and not isinstance(below, GraphQLObjectType)):
            continue
        selections.append(name if is_leaf_type(below) else f"{name} {{ {leaf_names(below)} }}")
    return selections


def leaf_names(object_type: Any) -> str:
    def is_leaf(field: GraphQLField) -> bool:
        return not field.args and is_leaf_type(get_named_type(field.type))

    names = [name for name, field in object_type.fields.items() if is_leaf(field)]
    return " ".join(names or ["__typename"])


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("type_name", "document", "min_cached_fields"),
    [("Message", MESSAGES, 20), ("Mailbox", MAILBOXES, 12)],
)
async def test_cached_rows_are_those_of_a_document_that_is_not_compiled(
    ada: GraphQLClient,
    clock: ManualClock,
    type_name: str,
    document: str,
    min_cached_fields: int,
) -> None:
    """Two hours later too: no cached field depends on time."""
    for subject in ("a", "b"):
        await deliver_to(ada, subject)
    cached_fields = []
    for selection in field_selections(type_name):
        text = document % f"id {selection}"
        for _ in range(READS_UNTIL_CACHED - 1):
            await ada.execute(text)
        clock.tick(hours=2)
        ROW_COUNTS.clear()
        answer, expected = await ada.execute(text), await ada.execute(f"{text} # not compiled")
        assert answer.get("data") == expected.get("data"), selection
        if ROW_COUNTS["cached"]:
            cached_fields.append(selection)
    assert len(cached_fields) >= min_cached_fields, cached_fields


async def test_changed_row_is_completed_again(ada: GraphQLClient, cache: RowCache) -> None:
    for subject in ("a", "b"):
        await deliver_to(ada, subject)
    document = MESSAGES % "id subject seen imap { flags }"
    before = [await read_body(ada, document) for _ in range(READS_UNTIL_CACHED)]
    assert set(before) == {before[0]}
    assert ROW_COUNTS == {"computed": 4, "cached": 2}
    newest, _ = json.loads(before[0])["data"]["user"]["messages"]["nodes"]
    await ada(CHANGE, id=newest["id"])
    changed, unchanged = json.loads(await read_body(ada, document))["data"]["user"]["messages"][
        "nodes"
    ]
    assert (changed["seen"], changed["imap"]["flags"]) == (True, ["\\Seen"])
    assert (unchanged["seen"], unchanged["imap"]["flags"]) == (False, [])
    assert ROW_COUNTS == {"computed": 5, "cached": 3}
    cache.set_limit_and_clear(0)
    assert json.loads(await read_body(ada, document))["data"]["user"]["messages"]["nodes"] == [
        changed,
        unchanged,
    ]
    assert ROW_COUNTS == {"computed": 7, "cached": 3}


@pytest.mark.usefixtures("cache")
async def test_rows_of_one_user_are_not_in_the_answers_of_another(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await deliver_to(ada, "For Ada")
    document = MESSAGES % "id subject"
    for _ in range(READS_UNTIL_CACHED):
        assert b"For Ada" in await read_body(ada, document)
    for _ in range(READS_UNTIL_CACHED):
        assert json.loads(await read_body(bob, document))["data"]["user"]["messages"]["nodes"] == []


def complete_sample_row(row: tuple[Any, ...], _budget: ResponseBudget) -> CompletedRow:
    return {"number": row[0], "text": row[1]}, len(row[1])


def stored_rows(cache: RowCache) -> list[CompletedRow]:
    return [
        completed
        for generation in (cache._recent, cache._older)  # noqa: SLF001 - what the cache keeps
        for rows in generation.values()
        for completed in rows.values()
    ]


def complete_twice(function: RowsFunction, rows: Sequence[Any]) -> list[Any]:
    function(rows, ResponseBudget())
    return function(rows, ResponseBudget())


def test_cache_keeps_its_limit_and_the_rows_of_the_last_reads(cache: RowCache) -> None:
    cache.set_limit_and_clear(100_000)
    function = RowsFunction(complete_sample_row)
    frequent = [(number, "frequent") for number in range(10)]
    for number in range(2000):
        complete_twice(function, [(number, "rare")])
        if number % 10 == 0:
            complete_twice(function, frequent)
            assert 0 < cache.used_bytes <= cache.max_bytes
            assert len(stored_rows(cache)) * ENTRY_OVERHEAD < cache.used_bytes
    ROW_COUNTS.clear()
    function(frequent, ResponseBudget())
    assert ROW_COUNTS == {"computed": 0, "cached": 10}


def test_rows_that_are_read_once_are_not_stored(cache: RowCache) -> None:
    function = RowsFunction(complete_sample_row)
    for number in range(1000):
        function([(number, "once")], ResponseBudget())
    assert len(stored_rows(cache)) < 50  # of different rows with the same mark


def test_cache_without_memory_stores_no_row(cache: RowCache) -> None:
    cache.set_limit_and_clear(0)
    function = RowsFunction(complete_sample_row)
    for number in range(10):
        complete_twice(function, [(number, "x")])
        complete_twice(function, [(number, "x")])
    assert ROW_COUNTS["cached"] == 0
    assert stored_rows(cache) == []


def test_row_with_large_values_is_not_stored(cache: RowCache) -> None:
    row = (1, "x", "y" * MAX_ENTRY_BYTES)  # the last value is not in the response
    complete_twice(RowsFunction(complete_sample_row), [row])
    assert stored_rows(cache) == []
    assert cache.used_bytes == 0


def test_large_row_is_not_stored(cache: RowCache) -> None:
    row = (1, "x" * (MAX_ROW_BYTES + 1))
    assert complete_twice(RowsFunction(complete_sample_row), [row]) == [
        {"number": 1, "text": row[1]}
    ]
    assert stored_rows(cache) == []


@pytest.mark.usefixtures("cache")
def test_cached_rows_count_as_bytes_of_the_response() -> None:
    function, rows = RowsFunction(complete_sample_row), [(1, "x" * 30), (2, "x" * 30)]
    for _ in range(READS_UNTIL_CACHED):
        budget = ResponseBudget(limit=60)
        function(rows, budget)
        assert budget.left == 0
    with pytest.raises(ResponseTooLarge):
        function(rows, ResponseBudget(limit=59))


@pytest.mark.usefixtures("cache")
def test_rows_are_encoded_beside_half_a_surrogate_pair() -> None:
    rows = [(1, "half a pair: \ud83d"), (2, 'Grüße 🦆 "quoted"')]
    plain = [complete_sample_row(row, ResponseBudget())[0] for row in rows]
    encoded = complete_twice(RowsFunction(complete_sample_row), rows)
    assert all(isinstance(row, orjson.Fragment) for row in encoded)
    assert json.loads(encode_json({"rows": encoded, "odd": "\ud83d"})) == {
        "rows": plain,
        "odd": "\ud83d",
    }
    assert json.loads(encode_json(encoded)) == plain
    with pytest.raises(TypeError):
        encode_json({"odd": "\ud83d", "object": object()})


@pytest.mark.usefixtures("cache")
async def test_metrics_count_completed_rows(
    ada: GraphQLClient, root: GraphQLClient, http: httpx.AsyncClient
) -> None:
    await deliver_to(ada, raw_message("a"))
    for _ in range(READS_UNTIL_CACHED):
        await read_body(ada, MESSAGES % "id subject")
    text = (await http.get("/metrics", headers=root.headers)).text
    for outcome in ("cached", "computed"):
        assert ROW_COUNTS[outcome] > 0
        line = f'merganser_completed_rows_total{{outcome="{outcome}"}} {ROW_COUNTS[outcome]}'
        assert line in text.splitlines()
