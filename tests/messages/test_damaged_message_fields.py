"""Test that fields and mutations reading damaged bytes return DAMAGED and log one warning."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from graphql import (
    GraphQLNonNull,
    GraphQLObjectType,
    get_named_type,
    is_leaf_type,
    is_required_argument,
)
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from mail.search import index_worker
from models.files.blobs import Blob
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.demo_account import subscription_results
from tests.support.mail import multipart_message
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.operations.filter_operations import add_filter, try_apply_filters
from tests.support.operations.quarantine_operations import quarantine_message
from tests.support.operations.task_operations import run_task
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall
from tests.support.schema.printed_schema import SDL
from tests.support.stores.blob_damage import damage_blob
from tests.support.time_limits import HANG_SECONDS

DAMAGE_FUNCTIONS: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "truncated": lambda data: data[:-1],
    "deleted": lambda _: None,
}
CONTENT = multipart_message.pseudo_random_bytes(200_000)
INVITATION = (
    b"BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nUID:1\r\nDTSTART:20300101T000000Z\r\n"
    b"END:VEVENT\r\nEND:VCALENDAR\r\n"
)
FILES = [
    multipart_message.base64_attachment(
        "filename=large.pdf", CONTENT, multipart_message.base64_lines(CONTENT)
    ),
    multipart_message.AttachmentPart(
        "Content-Type: message/rfc822",
        multipart_message.INNER_MESSAGE,
        multipart_message.INNER_MESSAGE,
    ),
    multipart_message.base64_attachment(
        "filename=long.txt",
        multipart_message.LOG_CONTENT[:90_000],
        multipart_message.base64_lines(multipart_message.LOG_CONTENT[:90_000]),
        "text/plain",
    ),
    multipart_message.AttachmentPart(
        "Content-Type: text/calendar; method=REQUEST", INVITATION, INVITATION
    ),
]

SEND_INPUT = {"to": [{"address": "carol@example.net"}], "subject": "x", "text": "Look."}
REQUIRED_ARGUMENTS = {
    "header": 'name: "Subject"',
    "bodyPart": 'section: "2"',
    "binaryPart": 'section: "2"',
}
MESSAGE_CONTENT_FIELDS = {
    "html", "bodyParts", "remoteImageCount", "hasComplexHtml", "text", "headers", "rawHeader",
    "priority", "header", "body", "bodyPart", "binaryPart", "rawSource", "calendarEvents",
}  # fmt: skip
CONTENT_FIELDS = {  # By type: fields that read stored bytes. `snippet` only does in a search.
    "Message": MESSAGE_CONTENT_FIELDS,
    "MessageImap": {"size", "envelope", "body", "bodyStructure"},
    "Attachment": {"text", "message"},
    "MimePart": {"message"},
    "DeletedMessage": set[str](),
    "File": set[str](),
    "QuarantineItem": {"text"},
}
CONTENT_MUTATIONS = {  # mutations whose sample calls read stored bytes
    "messageRedirect", "draftSend", "draftSave", "quarantineRelease",
}  # fmt: skip
ADMIN_FIELDS = {"storage"}  # of Message
PAGE_QUERY = (
    "{{ viewer {{ user {{ messages(first: 2, orderBy: RECEIVED_AT_ASC) "
    "{{ nodes {{ {} }} }} }} }} }}"
)
OBJECT_QUERIES = {  # by type: the query for an object
    "Message": "query ($id: ID!) {{ message(by: {{id: $id}}) {{ {} }} }}",
    "MessageImap": "query ($id: ID!) {{ message(by: {{id: $id}}) {{ imap {{ {} }} }} }}",
    "Attachment": "query ($id: ID!) {{ message(by: {{id: $id}}) {{ attachments {{ {} }} }} }}",
    "MimePart": "query ($id: ID!) {{ "
    "message(by: {{id: $id}}) {{ mimeStructure {{ parts {{ {} }} }} }} }}",
    "DeletedMessage": "{{ viewer {{ user {{ deletedMessages {{ nodes {{ {} }} }} }} }} }}",
    "File": "{{ viewer {{ user {{ files {{ nodes {{ {} }} }} }} }} }}",
    "QuarantineItem": "{{ viewer {{ user {{ quarantine {{ nodes {{ {} }} }} }} }} }}",
}


async def damage_all(environment: Environment, damage: Callable[[bytes], bytes | None]) -> set[str]:
    """Damage every stored blob, in objects and in rows. Return the digests of the rows."""
    for name in [stored_object.name async for stored_object in environment.object_store.list()]:
        await damage_blob(environment.object_store, name, damage)
    rows = await environment.database.read(select(*select_columns(Blob)))
    for row in rows:
        if row.name is None:
            await damage_row(environment, row, damage)
    return {row.digest for row in rows}


async def damage_row(
    environment: Environment, row: Any, damage: Callable[[bytes], bytes | None]
) -> None:
    """Damage the bytes in one row of the table of blobs."""
    async with environment.write_session() as session:
        blob_update = (
            update(Blob).where(col(Blob.id) == row.id).values(data=damage(row.data) or b"")
        )
        await (await session.connection()).execute(blob_update)


async def damage_message(environment: Environment, message_id: int) -> None:
    """Damage the stored bytes of one message without attachments."""
    blobs = select(*select_columns(Blob)).join(Message, col(Message.blob_id) == col(Blob.id))
    (row,) = await environment.database.read(blobs.where(col(Message.id) == message_id))
    await damage_row(environment, row, DAMAGE_FUNCTIONS["flipped"])


class LogWarnings:
    """Returns the warnings logged since the last call. Fails on a logged error or traceback."""

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
def take_warnings(caplog: pytest.LogCaptureFixture) -> LogWarnings:
    return LogWarnings(caplog)


async def store_objects(ada: GraphQLClient) -> str:
    """Store an object of each type with the same bytes. Return the ID of the message."""
    message_id = (
        await deliver_to(ada, multipart_message.build_message(FILES, subject="Kept"))
    ).message_id
    await deliver_to(ada, multipart_message.build_message(FILES, subject="Gone"))
    await quarantine_message(ada, multipart_message.build_message(FILES, subject="Held"))
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("2"))
    await ada.http.post(
        "/rest/files/large.bin",
        content=CONTENT,
        headers={**ada.headers, "content-type": "text/plain"},
    )
    return str(global_ids.encode("Message", message_id))


def field_selections(kind: str) -> Iterator[tuple[str, str]]:
    """Yield name and selection of each field of a type.

    A selection has the required arguments and a selection set.
    """
    object_type = SDL.type_map[kind]
    assert isinstance(object_type, GraphQLObjectType)
    for name, field in object_type.fields.items():
        named_type = get_named_type(field.type)
        required = any(is_required_argument(argument) for argument in field.args.values())
        arguments = f"({REQUIRED_ARGUMENTS[name]})" if required else ""
        yield name, f"{name}{arguments}" + ("" if is_leaf_type(named_type) else " { __typename }")


def is_non_null(kind: str, name: str) -> bool:
    object_type = SDL.type_map[kind]
    assert isinstance(object_type, GraphQLObjectType)
    return isinstance(object_type.fields[name].type, GraphQLNonNull)


@pytest.mark.parametrize("damage", DAMAGE_FUNCTIONS)
async def test_field_that_reads_damaged_bytes_returns_error(
    ada_by_executor: GraphQLClient, damage: str, take_warnings: LogWarnings
) -> None:
    message_id = await store_objects(ada_by_executor)
    digests = await damage_all(ada_by_executor.environment, DAMAGE_FUNCTIONS[damage])
    for kind, expected_fields in CONTENT_FIELDS.items():
        damaged_fields = set[str]()
        for name, field in field_selections(kind):
            document = OBJECT_QUERIES[kind].format(field)
            variables = {"id": message_id} if "$id" in document else {}
            for _ in range(2):  # a repeated document is compiled
                take_warnings()
                answer = await ada_by_executor.execute(document, **variables)
                codes = {error["extensions"]["code"] for error in answer.get("errors", ())}
                assert codes <= {"DAMAGED", "FORBIDDEN"}, (kind, name, answer)
                warnings = take_warnings()
                if "DAMAGED" not in codes:
                    assert not warnings, name
                    continue
                damaged_fields.add(name)
                assert all(error["path"][-1] == name for error in answer["errors"]), name
                assert len(warnings) == 1, warnings
                assert warnings[0]["request_id"] == answer["errors"][0]["extensions"]["requestId"]
                assert any(digest in warnings[0]["damage"] for digest in digests), warnings
        assert damaged_fields == expected_fields, kind
        non_null = {name for name in damaged_fields if is_non_null(kind, name)}
        assert not non_null, "the error of one message would remove the page"


def null_fields(node: dict[str, Any]) -> set[str]:
    """Return the fields of a message that are null, those in `imap` with its name."""
    values = {**node, **{f"imap.{name}": value for name, value in node["imap"].items()}}
    return {name for name, value in values.items() if value is None}


async def test_damaged_message_in_a_page_nulls_only_its_own_content(
    ada_by_executor: GraphQLClient,
) -> None:
    damaged_id = (await deliver_to(ada_by_executor, "Damaged")).message_id
    await deliver_to(ada_by_executor, "Whole")
    await damage_message(ada_by_executor.environment, damaged_id)
    fields = [text for name, text in field_selections("Message") if name not in ADMIN_FIELDS]
    imap_fields = [text for _, text in field_selections("MessageImap")]
    selection = " ".join(fields).replace("imap {", f"imap {{ {' '.join(imap_fields)}")
    content_fields = MESSAGE_CONTENT_FIELDS - {"calendarEvents", "bodyPart", "binaryPart"}
    content_fields |= {f"imap.{name}" for name in CONTENT_FIELDS["MessageImap"]}
    for _ in range(3):  # a repeated document is compiled
        answer = await ada_by_executor.execute(PAGE_QUERY.format(selection))
        damaged, whole = answer["data"]["viewer"]["user"]["messages"]["nodes"]
        assert (damaged["subject"], whole["subject"]) == ("Damaged", "Whole")
        assert null_fields(damaged) == null_fields(whole) | content_fields
        assert not null_fields(whole) & content_fields
        failed_paths = {".".join(map(str, error["path"])) for error in answer["errors"]}
        assert failed_paths == {f"viewer.user.messages.nodes.0.{name}" for name in content_fields}
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"DAMAGED"}


@pytest.mark.parametrize("name", SAMPLE_CALLS)
async def test_mutation_that_reads_damaged_bytes_returns_error(
    name: str, ada: GraphQLClient, root: GraphQLClient, take_warnings: LogWarnings
) -> None:
    mutation = await SAMPLE_CALLS[name](ada, root)
    digests = await damage_all(ada.environment, DAMAGE_FUNCTIONS["flipped"])
    take_warnings()
    client = mutation.other_caller or (root if mutation.by_root else ada)
    answer = await client.execute(mutation.document(), input=mutation.input)
    warnings = take_warnings()
    errors = answer["data"][name]["errors"]
    codes = [(error["__typename"], error["code"]) for error in errors]
    top_level_codes = [error["extensions"]["code"] for error in answer.get("errors", ())]
    assert set(codes) <= {("DamagedError", "DAMAGED")}, errors
    assert set(top_level_codes) <= {"DAMAGED"}, answer["errors"]
    assert bool(codes or top_level_codes) is (name in CONTENT_MUTATIONS), answer
    if codes:
        assert any(digest in warnings[0]["damage"] for digest in digests), warnings


async def upload_content(client: GraphQLClient, content: bytes) -> str:
    answer = await client.http.post("/rest/uploads", content=content, headers=client.headers)
    return str(answer.json()["id"])


async def prepare_stored_file(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await store_objects(ada)
    (file,) = (await ada("{ viewer { user { files { nodes { id } } } } }"))["viewer"]["user"][
        "files"
    ]["nodes"]
    return MutationCall(
        "messageSend", {**SEND_INPUT, "fileAttachments": [{"file": {"id": file["id"]}}]}
    )


async def prepare_upload(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "messageSend",
        {**SEND_INPUT, "attachments": [{"upload": await upload_content(ada, CONTENT)}]},
    )


async def prepare_raw_upload(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "messageSend",
        {"rawUpload": await upload_content(ada, multipart_message.build_message(FILES))},
    )


async def prepare_reference(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    reference = {
        "message": {"id": await store_objects(ada)},
        "relation": "FORWARD",
        "quote": "ABOVE",
    }
    return MutationCall("messageSend", {**SEND_INPUT, "original": reference})


async def prepare_archive_import(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    mbox = b"From a@b.example Tue Jan  6 10:00:00 2026\n" + multipart_message.build_message(FILES)
    return MutationCall("userImport", {"archive": {"upload": await upload_content(ada, mbox)}})


async def prepare_user_file(_ada: GraphQLClient, admin_client: GraphQLClient) -> MutationCall:
    records = b'{"address": "eve@example.org"}\n' * 100
    return MutationCall(
        "usersCreateFromFile",
        {"file": await upload_content(admin_client, records)},
        other_caller=admin_client,
    )


@pytest.mark.parametrize(
    "prepare",
    [
        prepare_stored_file,
        prepare_upload,
        prepare_raw_upload,
        prepare_reference,
        prepare_archive_import,
        prepare_user_file,
    ],
)
async def test_mutation_with_deleted_input_bytes_returns_error(
    prepare: Callable[[GraphQLClient, GraphQLClient], Awaitable[MutationCall]],
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    take_warnings: LogWarnings,
) -> None:
    mutation = await prepare(ada, admin_client)
    await damage_all(ada.environment, DAMAGE_FUNCTIONS["deleted"])
    take_warnings()
    answer = await mutation(mutation.other_caller or ada)
    assert [(error["__typename"], error["code"]) for error in answer["errors"]] == [
        ("DamagedError", "DAMAGED")
    ]
    (warning,) = take_warnings()
    assert warning["path"] == mutation.name


async def test_damaged_fields_of_one_request_log_one_warning(
    ada: GraphQLClient, take_warnings: LogWarnings
) -> None:
    message_id = await store_objects(ada)
    await damage_all(ada.environment, DAMAGE_FUNCTIONS["flipped"])
    take_warnings()
    document = 'query ($id: ID!) { message(by: {id: $id}) { text header(name: "x") subject } }'
    answer = await ada.execute(document, id=message_id)
    assert {error["extensions"]["code"] for error in answer["errors"]} == {"DAMAGED"}
    (warning,) = take_warnings()
    assert warning["path"] == "message.text"


async def test_search_snippet_of_damaged_message_returns_error(
    ada: GraphQLClient, take_warnings: LogWarnings
) -> None:
    await store_objects(ada)
    while await index_worker.index_next_batch_and_record_contacts(ada.environment):
        pass
    await damage_all(ada.environment, DAMAGE_FUNCTIONS["flipped"])
    take_warnings()
    answer = await ada.execute(
        '{ viewer { user { messages(filter: {query: "Gott"}) { nodes { snippet } } } } }'
    )
    assert {error["extensions"]["code"] for error in answer["errors"]} == {"DAMAGED"}, answer
    assert len(take_warnings()) == 1


async def test_subscription_event_with_damaged_message_returns_error(
    ada_by_executor: GraphQLClient, take_warnings: LogWarnings
) -> None:
    await store_objects(ada_by_executor)
    await damage_all(ada_by_executor.environment, DAMAGE_FUNCTIONS["flipped"])
    take_warnings()
    document = f"""subscription {{ changes(after: "1.{ada_by_executor.user.id}.0") {{ events {{
      ... on MessageChange {{ message {{
        subject text imap {{ uid deleted envelope }} }} }} }} }} }}"""
    results = subscription_results(ada_by_executor, document)
    async with asyncio.timeout(HANG_SECONDS):
        result = await anext(results)
    await results.aclose()
    assert {error.extensions["code"] for error in result.errors} == {"DAMAGED"}
    imap = {"uid": 1, "deleted": False, "envelope": None}
    expected = {"message": {"subject": "Kept", "text": None, "imap": imap}}
    assert expected in result.data["changes"]["events"]
    assert len(take_warnings()) == 1


async def test_import_task_fails_at_damaged_bytes(
    ada: GraphQLClient, take_warnings: LogWarnings
) -> None:
    mbox = b"From a@b.example Tue Jan  6 10:00:00 2026\n" + multipart_message.build_message(FILES)
    call = MutationCall(
        "userImport", {"archive": {"upload": await upload_content(ada, mbox)}}, "task { id }"
    )
    task = (await call(ada))["task"]
    await damage_all(ada.environment, DAMAGE_FUNCTIONS["flipped"])
    assert (await run_task(ada, task))["state"] == "FAILED"
    assert [warning["kind"] for warning in take_warnings()] == ["USER_IMPORT"]


async def test_filter_task_skips_damaged_message(
    ada: GraphQLClient, take_warnings: LogWarnings
) -> None:
    filter_id = (await add_filter(ada, {"text": "Inner"}, {"seen": True}))["id"]
    await deliver_to(ada, multipart_message.build_message(FILES))
    task, _ = await try_apply_filters(ada, filter_id, mailbox={"path": "INBOX"})
    await damage_all(ada.environment, DAMAGE_FUNCTIONS["flipped"])
    finished = await run_task(ada, task)
    assert (finished["state"], finished["result"]) == (
        "SUCCEEDED",
        {"changedCount": 0, "remainingCount": 0},
    )
    (warning,) = take_warnings()
    assert warning["message"] == "Filters not applied to a damaged message"
