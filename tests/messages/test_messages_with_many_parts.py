"""A message with thousands of parts is read in time that grows with its size."""

import time
from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from graphql import (
    GraphQLField,
    GraphQLObjectType,
    get_named_type,
    is_leaf_type,
    is_object_type,
    is_required_argument,
)

from graph.schema import schema
from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to
from tests.support.growth import GROWTH, MAX_MEASUREMENTS, MAX_RATIO
from tests.support.mail.growing_messages import GROWING_PARTS, attached_messages, text_files
from tests.support.run_scope import RUNS_ALL_TESTS
from tests.support.servers.loop_step_timer import MAX_STEP_SECONDS, measure_steps

LARGE_COUNT = 16_000 if RUNS_ALL_TESTS else 4_000
STEP_COUNT = 7_000 if RUNS_ALL_TESTS else 3_000
DEADLINE_COUNT = 7_000 if RUNS_ALL_TESTS else 4_000
DEADLINE_SECONDS = 0.02  # a small part of the time to read such a message
HOSTILE_SELECTIONS = (  # in the example of `docs/api/messages.md`
    "attachments { text }",
    "attachments { message { subject } }",
    "mimeStructure { parts { message { subject } } }",
)
ENOUGH_SECONDS = 0.1  # a shorter time is fast whatever the size
ARGUMENTS = {"header": '(name: "Subject")', "bodyPart": '(section: "900")',
             "binaryPart": '(section: "900")'}  # fmt: skip
SHAPES = GROWING_PARTS if RUNS_ALL_TESTS else ("text files", "attached messages")


def object_type(name: str) -> GraphQLObjectType:
    type_ = schema._schema.type_map[name]  # noqa: SLF001
    assert isinstance(type_, GraphQLObjectType)
    return type_


def needs_arguments(field: GraphQLField) -> bool:
    return any(is_required_argument(argument) for argument in field.args.values())


def leaf_fields(type_: GraphQLObjectType) -> list[str]:
    return [
        name
        for name, field in type_.fields.items()
        if is_leaf_type(get_named_type(field.type)) and not needs_arguments(field)
    ]


def selections(type_name: str) -> Iterable[tuple[str, str]]:
    """Each field of a type, with arguments and the leaf fields of its value."""
    for name, field in object_type(type_name).fields.items():
        value_type = get_named_type(field.type)
        arguments = ARGUMENTS.get(name, "")
        if needs_arguments(field) and not arguments:
            continue
        if is_leaf_type(value_type):
            yield name, f"{name}{arguments}"
        elif is_object_type(value_type):
            yield name, f"{name}{arguments} {{ {' '.join(leaf_fields(value_type))} }}"


def part_selections() -> Iterable[str]:
    for _, selection in selections("Attachment"):
        yield f"attachments {{ {selection} }}"
    for _, selection in selections("MimePart"):
        yield f"mimeStructure {{ parts {{ {selection} }} }}"
    inner = " ".join(selection for _, selection in selections("AttachedMessage"))
    yield f"attachments {{ message {{ {inner} }} }}"
    yield f"mimeStructure {{ parts {{ message {{ {inner} }} }} }}"


def message_selections() -> Iterable[str]:
    for _, selection in selections("Message"):
        yield selection


async def deliver(client: GraphQLClient, raw: bytes) -> str:
    return global_ids.encode("Message", (await deliver_to(client, raw)).message_id)


async def send_query(client: GraphQLClient, message_id: str, selection: str) -> Any:
    document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {selection} }} }}"
    request = {"query": document, "variables": {"id": message_id}}
    return (await client.http.post("/graphql", json=request, headers=client.headers)).json()


async def execute(client: GraphQLClient, message_id: str, selection: str) -> Any:
    response = await send_query(client, message_id, selection)
    codes = {error["extensions"]["code"] for error in response.get("errors", ())}
    assert codes <= {"FORBIDDEN"}, (selection, response["errors"][:1])
    return response["data"]["message"]


def clear_byte_cache(client: GraphQLClient) -> None:
    for key, _ in client.environment.byte_cache.list_entries():
        client.environment.byte_cache.remove(key)


async def cpu_seconds(client: GraphQLClient, message_id: str, selection: str) -> float:
    """The CPU time of the process for one request."""
    clear_byte_cache(client)
    started_at = time.process_time()
    await execute(client, message_id, selection)
    return time.process_time() - started_at


@pytest.mark.parametrize("shape", SHAPES)
async def test_time_to_read_each_field_grows_with_number_of_parts(
    ada: GraphQLClient, shape: str
) -> None:
    small = await deliver(ada, GROWING_PARTS[shape](LARGE_COUNT // GROWTH))
    large = await deliver(ada, GROWING_PARTS[shape](LARGE_COUNT))
    slow = {}
    for selection in (*part_selections(), *message_selections()):
        large_seconds = small_seconds = inf
        for _ in range(2 * MAX_MEASUREMENTS):
            large_seconds = min(large_seconds, await cpu_seconds(ada, large, selection))
            if large_seconds <= ENOUGH_SECONDS:
                break
            for _ in range(2):  # a disturbed measurement would allow more for the large message
                small_seconds = min(small_seconds, await cpu_seconds(ada, small, selection))
            if large_seconds <= MAX_RATIO * small_seconds:
                break
        else:
            slow[selection] = (small_seconds, large_seconds)
    assert not slow


@pytest.mark.parametrize("make_message", [text_files, attached_messages])
async def test_steps_of_event_loop_are_short_with_many_parts(
    ada: GraphQLClient, make_message: Any
) -> None:
    message_id = await deliver(ada, make_message(STEP_COUNT))
    slow = {}
    for selection in part_selections():
        _, steps = await measure_steps(lambda: execute(ada, message_id, selection))  # noqa: B023
        if steps.longest_seconds > MAX_STEP_SECONDS:
            slow[selection] = str(steps)
    assert not slow


@pytest.mark.parametrize("selection", HOSTILE_SELECTIONS)
async def test_deadline_stops_the_reading_of_many_parts(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch, selection: str
) -> None:
    make_message = attached_messages if "message" in selection else text_files
    message_id = await deliver(ada, make_message(DEADLINE_COUNT))
    all_seconds = await cpu_seconds(ada, message_id, selection)
    monkeypatch.setattr(schema, "limits", replace(schema.limits, deadline=DEADLINE_SECONDS))

    async def read_until_deadline() -> tuple[list[str], float]:
        clear_byte_cache(ada)
        started_at = time.process_time()
        response = await send_query(ada, message_id, selection)
        seconds = time.process_time() - started_at
        return [error["extensions"]["code"] for error in response["errors"]], seconds

    (codes, seconds), steps = await measure_steps(read_until_deadline)
    assert codes == ["DEADLINE_EXCEEDED"]
    assert seconds < all_seconds / 2
    assert steps.longest_seconds <= MAX_STEP_SECONDS, str(steps)
