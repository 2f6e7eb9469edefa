"""The deadline of a mutation: completed fields keep their payloads, other fields have an error."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from graph.schema import schema
from mail.storage.blobs.object_stores import FolderStore
from models.runtime.environment import Environment
from models.store.byte_cache import ByteCache
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.loop_clock import LoopClock
from tests.support.operations.atomic_operations import entry_field, load_key_values
from tests.support.time_limits import HANG_SECONDS

DEADLINE = 10 * HANG_SECONDS
UPLOAD_FIELD = """upload: draftSave(input: {set: {subject: "Large",
  to: [{address: "x@y.example"}], addAttachments: [{content: $text, filename: "x.bin"}]}})
  { errors { code } }"""
SLOW_READ_FIELD = """seen: messageUpdate(
  input: {select: {mailbox: {path: "INBOX"}}, set: {seen: true}})
  { messages { seen rawSource } errors { code } }"""


class BlockedStore(FolderStore):
    """An object store that blocks every read and write until `opened` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.called = asyncio.Event()
        self.opened = asyncio.Event()

    async def _wait(self) -> None:
        self.called.set()
        await self.opened.wait()

    async def put(self, name: str, data: bytes) -> None:
        await self._wait()
        await super().put(name, data)

    async def get(self, name: str) -> bytes:
        await self._wait()
        return await super().get(name)

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        await self._wait()
        return await super().get_range(name, start, end)

    async def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        await self._wait()
        async for part in super().stream(name, start, end):
            yield part


@pytest.fixture(name="each_executor")
def each_executor_with_deadline(
    each_executor: None,  # noqa: ARG001 - only its effect counts
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of the executors, with a deadline that only the test reaches."""
    monkeypatch.setattr(schema, "limits", replace(schema.limits, deadline=DEADLINE))


@asynccontextmanager
async def client_with_store(
    client: GraphQLClient, environment: Environment, store: FolderStore, spool: Path
) -> Any:
    """Yield the client of a server with its blobs in this store."""
    environment = replace(environment, object_store=store, byte_cache=ByteCache())
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=spool))
    async with httpx.AsyncClient(transport=transport, base_url="http://slow") as http:
        yield replace(client, http=http, environment=environment)


async def execute_until_deadline(
    client: GraphQLClient, store: BlockedStore, document: str, **variables: Any
) -> Any:
    """Execute a document, and pass its deadline when it uses the store."""
    store.called.clear()
    request = asyncio.create_task(client.execute(document, **variables))
    async with asyncio.timeout(HANG_SECONDS):
        await store.called.wait()
    LoopClock().advance(DEADLINE)
    return await request


def late_fields(answer: Any) -> dict[str, Any]:
    """Return whether the change of each late field was committed, by field name."""
    errors = answer["errors"]
    assert {error["extensions"]["code"] for error in errors} == {"DEADLINE_EXCEEDED"}
    return {".".join(error["path"]): error["extensions"]["committed"] for error in errors}


@pytest.mark.usefixtures("each_executor")
async def test_completed_fields_keep_their_payloads_at_the_deadline(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    store = BlockedStore(tmp_path / "slow")
    fields = f"{entry_field('a', alias='a')} {UPLOAD_FIELD} {entry_field('b', alias='b')}"
    document = f"mutation ($text: String!) {{ {fields} }}"
    text = base64.b64encode(environment.random_bytes(60_000)).decode()
    async with client_with_store(ada, environment, store, tmp_path) as client:
        for _ in range(2):  # a document is compiled on its second use
            answer = await execute_until_deadline(client, store, document, text=text)
            assert answer["data"]["a"]["keyValueEntry"] == {"key": "a", "value": "1"}
            assert answer["data"] | {"a": None} == {"a": None, "upload": None, "b": None}
            assert late_fields(answer) == {"upload": False, "b": False}
    assert await load_key_values(ada) == {"a": "1"}
    result = await ada("{ viewer { user { messages { totalCount } } } }")
    assert result["viewer"]["user"]["messages"]["totalCount"] == 0
    await store.close()


@pytest.mark.usefixtures("each_executor")
async def test_late_field_reports_that_it_is_committed(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    body = base64.encodebytes(environment.random_bytes(600_000)).decode()
    await deliver_to(ada, raw_message("Large", body=body))
    store = BlockedStore(tmp_path / "blobs")
    async with client_with_store(ada, environment, store, tmp_path) as client:
        document = f"mutation {{ {SLOW_READ_FIELD} {entry_field('b', alias='b')} }}"
        answer = await execute_until_deadline(client, store, document)
    assert answer["data"] == {"seen": None, "b": None}
    assert late_fields(answer) == {"seen": True, "b": False}
    messages_answer = await ada("{ viewer { user { messages { nodes { seen } } } } }")
    assert messages_answer["viewer"]["user"]["messages"]["nodes"] == [{"seen": True}]
    assert await load_key_values(ada) == {}
    await store.close()


@pytest.mark.usefixtures("each_executor")
async def test_late_atomic_request_reports_no_field_as_committed(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    store = BlockedStore(tmp_path / "slow")
    fields = f"{entry_field('a', alias='a')} ...Two {entry_field('b', alias='b')}"
    document = f"""mutation ($text: String!) @atomic {{ {fields} }}
      fragment Two on Mutation {{ {UPLOAD_FIELD} }}"""
    text = base64.b64encode(environment.random_bytes(60_000)).decode()
    async with client_with_store(ada, environment, store, tmp_path) as client:
        answer = await execute_until_deadline(client, store, document, text=text)
    assert answer["data"] == {"a": None, "upload": None, "b": None}
    assert late_fields(answer) == {"a": False, "upload": False, "b": False}
    assert await load_key_values(ada) == {}
    await store.close()


@pytest.mark.usefixtures("each_executor")
async def test_error_of_one_field_keeps_the_payloads_of_others(ada: GraphQLClient) -> None:
    failing_field = """broken: mailboxCreate(input: {paths: ["New"]})
      { mailboxes { path messages(first: 999) { nodes { id } } } errors { code } }"""
    answer = await ada.execute(
        f"mutation {{ {entry_field('a', alias='a')} "
        f"{failing_field} {entry_field('b', alias='b')} }}"
    )
    assert [answer["data"][name]["keyValueEntry"]["key"] for name in "ab"] == ["a", "b"]
    assert answer["data"]["broken"] == {
        "mailboxes": [{"path": "New", "messages": None}],
        "errors": [],
    }
    assert [error["path"] for error in answer["errors"]] == [["broken", "mailboxes", 0, "messages"]]
    assert await load_key_values(ada) == {"a": "1", "b": "1"}
