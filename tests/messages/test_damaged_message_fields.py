"""Fields and mutations that need damaged stored bytes: DAMAGED, and one line of the log."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from graphql import GraphQLObjectType, get_named_type, is_leaf_type, is_required_argument
from sqlalchemy import select, update
from sqlmodel import col

from graph.schema import schema
from graph.types import global_ids
from mail.search import index_worker
from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import Client, receive
from tests.support.accounts.demo_account import subscribed
from tests.support.mail import multipart_message
from tests.support.operations.bulk_operations import call, inbox
from tests.support.operations.filter_operations import apply, made
from tests.support.operations.quarantine_operations import hold
from tests.support.operations.task_operations import run_task
from tests.support.sample_mutations import CALLS, Call
from tests.support.schema.printed_schema import SDL
from tests.support.stores.blob_damage import damage_blob

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "truncated": lambda data: data[:-1],
    "deleted": lambda _: None,
}
CONTENT = multipart_message.noise(200_000)
INVITATION = (
    b"BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nUID:1\r\nDTSTART:20300101T000000Z\r\n"
    b"END:VEVENT\r\nEND:VCALENDAR\r\n"
)
FILES = [
    multipart_message.base64_file(
        "filename=large.pdf", CONTENT, multipart_message.wrapped(CONTENT)
    ),
    multipart_message.File(
        "Content-Type: message/rfc822", multipart_message.LETTER, multipart_message.LETTER
    ),
    multipart_message.base64_file(
        "filename=long.txt",
        multipart_message.LOG[:90_000],
        multipart_message.wrapped(multipart_message.LOG[:90_000]),
        "text/plain",
    ),
    multipart_message.File("Content-Type: text/calendar; method=REQUEST", INVITATION, INVITATION),
]

TO = {"to": [{"address": "carol@example.net"}], "subject": "x", "text": "Look."}
ARGUMENTS = {
    "header": 'name: "Subject"',
    "bodyPart": 'section: "2"',
    "binaryPart": 'section: "2"',
}
MESSAGE = {
    "html", "remoteImageCount", "hasComplexHtml", "text", "headers", "headersText",
    "header", "body", "bodyPart", "binaryPart", "source", "events", "virtualSize", "envelopeImap",
    "bodyImap", "bodyStructureImap",
}  # fmt: skip
READING = {  # by type: the fields that read stored bytes; `snippet` does in a search
    "Message": MESSAGE,
    "Attachment": {"text", "message"},
    "MimePart": {"message"},
    "ArchivedMessage": set[str](),
    "File": set[str](),
    "QuarantineItem": {"text"},
}
NEEDING = {  # mutations whose calls read stored bytes
    "messageForward", "messageSubmit", "messageUpload", "quarantineRelease",
}  # fmt: skip
ABOVE = {  # by type: where an object of it is found
    "Message": "query ($id: ID!) {{ message(by: {{id: $id}}) {{ {} }} }}",
    "Attachment": "query ($id: ID!) {{ message(by: {{id: $id}}) {{ attachments {{ {} }} }} }}",
    "MimePart": "query ($id: ID!) {{ "
    "message(by: {{id: $id}}) {{ structure {{ parts {{ {} }} }} }} }}",
    "ArchivedMessage": "{{ viewer {{ user {{ archivedMessages {{ nodes {{ {} }} }} }} }} }}",
    "File": "{{ viewer {{ user {{ files {{ nodes {{ {} }} }} }} }} }}",
    "QuarantineItem": "{{ viewer {{ user {{ quarantine {{ nodes {{ {} }} }} }} }} }}",
}


async def damage_all(world: Environment, damage: Callable[[bytes], bytes | None]) -> set[str]:
    """Damage every stored piece, objects and rows; return the digests."""
    for name in [found.name async for found in world.object_store.list()]:
        await damage_blob(world.object_store, name, damage)
    rows = await world.database.read(select(*select_columns(Blob)))
    for row in rows:
        if row.name is not None:
            continue
        async with world.write_session() as session:
            change = update(Blob).where(col(Blob.id) == row.id).values(data=damage(row.data) or b"")
            await (await session.connection()).execute(change)
    return {row.digest for row in rows}


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
async def either(request: pytest.FixtureRequest, ada: Client) -> AsyncIterator[Client]:
    """Ada, by each of the executors."""
    schema.choose_executor(is_compiled=request.param)
    yield ada
    schema.choose_executor(is_compiled=True)


class Log:
    """The warnings of the log since the last call. There is no error, and no traceback."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        self._caplog = caplog

    def __call__(self) -> list[dict[str, Any]]:
        records = list(self._caplog.records)
        self._caplog.clear()
        for record in records:
            assert record.levelno == logging.WARNING, record
            assert record.exc_info is None, record
        return [vars(record) for record in records]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


async def stored(ada: Client) -> str:
    """An object of each type with the same bytes; returns the id of the message."""
    key = (await receive(ada, multipart_message.raw(FILES, subject="Kept"))).message_id
    await receive(ada, multipart_message.raw(FILES, subject="Gone"))
    await hold(ada, multipart_message.raw(FILES, subject="Held"))
    await call(ada, "messageDelete", select=inbox("2"))
    await ada.http.post(
        "/rest/files/large.bin",
        content=CONTENT,
        headers={**ada.headers, "content-type": "text/plain"},
    )
    return str(global_ids.encode("Message", key))


def fields(kind: str) -> Iterator[tuple[str, str]]:
    """The fields of a type with arguments and a selection, by name."""
    of = SDL.type_map[kind]
    assert isinstance(of, GraphQLObjectType)
    for name, found in of.fields.items():
        inside = get_named_type(found.type)
        required = any(is_required_argument(argument) for argument in found.args.values())
        given = f"({ARGUMENTS[name]})" if required else ""
        yield name, f"{name}{given}" + ("" if is_leaf_type(inside) else " { __typename }")


@pytest.mark.parametrize("damage", DAMAGES)
async def test_each_field_that_reads_damaged_bytes_is_an_error(
    either: Client, damage: str, log: Log
) -> None:
    key = await stored(either)
    digests = await damage_all(either.world, DAMAGES[damage])
    for kind, reading in READING.items():
        found = set[str]()
        for name, field in fields(kind):
            document = ABOVE[kind].format(field)
            given = {"id": key} if "$id" in document else {}
            for _ in range(2):  # a document is compiled when it comes again
                log()
                answer = await either.raw(document, **given)
                codes = {error["extensions"]["code"] for error in answer.get("errors", ())}
                assert codes <= {"DAMAGED", "FORBIDDEN"}, (kind, name, answer)
                lines = log()
                if "DAMAGED" not in codes:
                    assert not lines, name
                    continue
                found.add(name)
                assert all(error["path"][-1] == name for error in answer["errors"]), name
                assert len(lines) == 1, lines
                assert lines[0]["request_id"] == answer["errors"][0]["extensions"]["requestId"]
                assert any(one in lines[0]["damage"] for one in digests), lines
        assert found == reading, kind


@pytest.mark.parametrize("name", CALLS)
async def test_each_mutation_that_needs_damaged_bytes_answers_so(
    name: str, ada: Client, root: Client, log: Log
) -> None:
    made = await CALLS[name](ada, root)
    digests = await damage_all(ada.world, DAMAGES["flipped"])
    log()
    client = made.by or (root if made.by_root else ada)
    answer = await client.raw(made.document(), input=made.input)
    lines = log()
    errors = answer["data"][name]["errors"]
    codes = [(error["__typename"], error["code"]) for error in errors]
    tops = [error["extensions"]["code"] for error in answer.get("errors", ())]
    assert set(codes) <= {("DamagedError", "DAMAGED")}, errors
    assert set(tops) <= {"DAMAGED"}, answer["errors"]
    assert bool(codes or tops) is (name in NEEDING), answer
    if codes:
        assert any(one in lines[0]["damage"] for one in digests), lines


async def uploaded(client: Client, content: bytes) -> str:
    answer = await client.http.post("/rest/uploads", content=content, headers=client.headers)
    return str(answer.json()["id"])


async def with_file(ada: Client, _root: Client) -> Call:
    await stored(ada)
    (file,) = (await ada("{ viewer { user { files { nodes { id } } } } }"))["viewer"]["user"][
        "files"
    ]["nodes"]
    return Call("messageSend", {**TO, "fileAttachments": [{"file": file["id"]}]})


async def with_upload(ada: Client, _root: Client) -> Call:
    return Call("messageSend", {**TO, "attachments": [{"upload": await uploaded(ada, CONTENT)}]})


async def with_raw_upload(ada: Client, _root: Client) -> Call:
    return Call("messageSend", {"rawUpload": await uploaded(ada, multipart_message.raw(FILES))})


async def with_reference(ada: Client, _root: Client) -> Call:
    reference = {"message": {"id": await stored(ada)}, "action": "FORWARD", "quote": "ABOVE"}
    return Call("messageSend", {**TO, "reference": reference})


async def with_archive(ada: Client, _root: Client) -> Call:
    mbox = b"From a@b.example Tue Jan  6 10:00:00 2026\n" + multipart_message.raw(FILES)
    return Call("accountImport", {"archive": {"upload": await uploaded(ada, mbox)}})


async def with_accounts(_ada: Client, over: Client) -> Call:
    records = b'{"address": "eve@example.org"}\n' * 100
    return Call("usersCreateFromFile", {"file": await uploaded(over, records)}, by=over)


@pytest.mark.parametrize(
    "prepare",
    [with_file, with_upload, with_raw_upload, with_reference, with_archive, with_accounts],
)
async def test_a_mutation_that_is_given_lost_bytes_answers_so(
    prepare: Callable[[Client, Client], Awaitable[Call]], ada: Client, over: Client, log: Log
) -> None:
    made = await prepare(ada, over)
    await damage_all(ada.world, DAMAGES["deleted"])
    log()
    answer = await made(made.by or ada)
    assert [(one["__typename"], one["code"]) for one in answer["errors"]] == [
        ("DamagedError", "DAMAGED")
    ]
    (line,) = log()
    assert line["path"] == made.name


async def test_the_fields_of_one_request_share_a_line(ada: Client, log: Log) -> None:
    key = await stored(ada)
    await damage_all(ada.world, DAMAGES["flipped"])
    log()
    document = 'query ($id: ID!) { message(by: {id: $id}) { text header(name: "x") subject } }'
    answer = await ada.raw(document, id=key)
    assert {one["extensions"]["code"] for one in answer["errors"]} == {"DAMAGED"}
    (line,) = log()
    assert line["path"] == "message.text"


async def test_a_snippet_of_a_search_is_an_error(ada: Client, log: Log) -> None:
    await stored(ada)
    while await index_worker.index_next_batch(ada.world):
        pass
    await damage_all(ada.world, DAMAGES["flipped"])
    log()
    answer = await ada.raw(
        '{ viewer { user { messages(filter: {query: "Gott"}) { nodes { snippet } } } } }'
    )
    assert {one["extensions"]["code"] for one in answer["errors"]} == {"DAMAGED"}, answer
    assert len(log()) == 1


async def test_an_event_of_a_subscription_says_so(either: Client, log: Log) -> None:
    await stored(either)
    await damage_all(either.world, DAMAGES["flipped"])
    log()
    document = f"""subscription {{ changes(after: "1.{either.user.id}.0") {{ events {{
      ... on MessageChange {{ message {{ subject text }} }} }} }} }}"""
    results = subscribed(either, document)
    async with asyncio.timeout(10):
        result = await anext(results)
    await results.aclose()
    assert {one.extensions["code"] for one in result.errors} == {"DAMAGED"}
    assert {"message": {"subject": "Kept", "text": None}} in result.data["changes"]["events"]
    assert len(log()) == 1


async def test_a_task_ends_at_the_first_damaged_bytes(ada: Client, log: Log) -> None:
    mbox = b"From a@b.example Tue Jan  6 10:00:00 2026\n" + multipart_message.raw(FILES)
    call = Call("accountImport", {"archive": {"upload": await uploaded(ada, mbox)}}, "task { id }")
    task = (await call(ada))["task"]
    await damage_all(ada.world, DAMAGES["flipped"])
    assert (await run_task(ada, task))["state"] == "FAILED"
    assert [line["kind"] for line in log()] == ["ACCOUNT_IMPORT"]


async def test_filters_pass_over_a_damaged_message(ada: Client, log: Log) -> None:
    key = (await made(ada, {"text": "Inner"}, {"seen": True}))["id"]
    await receive(ada, multipart_message.raw(FILES))
    task, _ = await apply(ada, key, mailbox={"path": "INBOX"})
    await damage_all(ada.world, DAMAGES["flipped"])
    done = await run_task(ada, task)
    assert (done["state"], done["result"]) == ("SUCCEEDED", {"changed": 0, "left": 0})
    (line,) = log()
    assert line["message"] == "filters were not applied to a damaged message"
