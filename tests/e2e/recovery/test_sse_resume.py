"""Tests of server-sent events with IDs: Last-Event-ID continues a stream without loss."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import raw_message
from tests.support.servers.merganser_server import ANSWER_TIMEOUT, HttpClient, MerganserProcess

SUBJECTS_SUBSCRIPTION = (
    "subscription { changes { events { ... on MessageChange { message { subject } } } } }"
)
CHANGES_SUBSCRIPTION = (
    "subscription ($after: Cursor) { changes(after: $after) { cursor events { type } } }"
)
STORES = ["sqlite"]  # following the journal is the same for every database
EVENT_STREAM_HEADERS = {"Accept": "text/event-stream"}


@dataclass
class SseBlock:
    """The fields between two empty lines, without comments."""

    id: str | None = None
    event: str | None = None
    data: Any = None

    @property
    def subjects(self) -> list[str]:
        events = self.data["data"]["changes"]["events"]
        return [event["message"]["subject"] for event in events]


class SseReader:
    """Reads blocks as the HTML standard defines them, with LF as the only line end."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._chunks = response.aiter_text()
        self._text = ""

    async def read_block(self) -> SseBlock:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            while True:
                while "\n\n" not in self._text:
                    self._text += await anext(self._chunks)
                block_text, self._text = self._text.split("\n\n", 1)
                assert "\r" not in block_text
                lines = [line for line in block_text.split("\n") if not line.startswith(":")]
                if lines:
                    return _block(lines)


def _block(lines: list[str]) -> SseBlock:
    fields = dict(line.split(": ", 1) for line in lines)
    data = fields.get("data")
    return SseBlock(fields.get("id"), fields.get("event"), json.loads(data) if data else None)


@asynccontextmanager
async def subscribed_reader(
    client: HttpClient,
    query: str = SUBJECTS_SUBSCRIPTION,
    last_event_id: str | None = None,
    **variables: Any,
) -> AsyncGenerator[SseReader]:
    headers = EVENT_STREAM_HEADERS | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    body = {"query": query, "variables": variables}
    async with client.http.stream("POST", "/graphql", json=body, headers=headers) as response:
        assert response.status_code == 200
        yield SseReader(response)


async def deliver_messages(server: MerganserProcess, *subjects: str, username: str = "hal") -> None:
    for subject in subjects:
        reply = await server.deliver_by_lmtp(raw_message(subject), f"{username}@example.org")
        assert reply.startswith("250 2.0.0 OK: queued")


async def test_every_event_has_an_id_without_selected_cursor(server: MerganserProcess) -> None:
    async with server.open_client("hal") as hal, subscribed_reader(hal) as stream:
        first_block = await stream.read_block()
        assert (first_block.id, first_block.event, first_block.data) == (
            await hal.load_cursor(),
            None,
            None,
        )
        await deliver_messages(server, "one")
        event_block = await stream.read_block()
        assert (event_block.event, event_block.subjects) == ("next", ["one"])
        assert event_block.id == await hal.load_cursor() != first_block.id


async def test_event_id_is_cursor_of_batch(server: MerganserProcess) -> None:
    async with server.open_client("hal") as hal:
        after = await hal.load_cursor()
        await deliver_messages(server, "two")
        async with subscribed_reader(hal, CHANGES_SUBSCRIPTION, after=after) as stream:
            block = await stream.read_block()
            assert block.id == block.data["data"]["changes"]["cursor"]


async def test_stream_cut_before_first_event_misses_no_event(server: MerganserProcess) -> None:
    async with server.open_client("hal") as hal:
        async with subscribed_reader(hal) as stream:
            first_block = await stream.read_block()
        await deliver_messages(server, "while away")
        async with subscribed_reader(hal, last_event_id=first_block.id) as stream:
            assert (await stream.read_block()).subjects == ["while away"]


async def test_stream_cut_after_each_event_delivers_all_once_in_order(
    server: MerganserProcess,
) -> None:
    sent_subjects = [f"letter {number}" for number in range(5)]
    received_subjects: list[str] = []
    async with server.open_client("hal") as hal:
        last_event_id: str | None = await hal.load_cursor()
        for subject in sent_subjects:
            async with subscribed_reader(hal, last_event_id=last_event_id) as stream:
                await deliver_messages(server, subject)
                block = await stream.read_block()
                received_subjects += block.subjects
                last_event_id = block.id
                # in transit when the connection is cut
                await deliver_messages(server, f"after {subject}")
            async with subscribed_reader(hal, last_event_id=last_event_id) as stream:
                block = await stream.read_block()
                received_subjects += block.subjects
                last_event_id = block.id
    assert received_subjects == [
        expected for subject in sent_subjects for expected in (subject, f"after {subject}")
    ]


async def test_last_event_id_overrides_after_argument(server: MerganserProcess) -> None:
    """A browser that reconnects sends the same URL, with the first `after` argument."""
    async with server.open_client("hal") as hal:
        old_cursor = await hal.load_cursor()
        await deliver_messages(server, "heard already")
        last_event_id = await hal.load_cursor()
        await deliver_messages(server, "not yet heard")
        async with subscribed_reader(
            hal, CHANGES_SUBSCRIPTION, last_event_id, after=old_cursor
        ) as stream:
            block = await stream.read_block()
    assert block.id != last_event_id
    assert len(block.data["data"]["changes"]["events"]) == 1


async def test_last_event_id_works_with_get(server: MerganserProcess) -> None:
    async with server.open_client("hal") as hal:
        last_event_id = await hal.load_cursor()
        await deliver_messages(server, "by GET")
        headers = EVENT_STREAM_HEADERS | {"Last-Event-ID": last_event_id}
        request = hal.http.stream(
            "GET", "/graphql", params={"query": SUBJECTS_SUBSCRIPTION}, headers=headers
        )
        async with request as response:
            assert (await SseReader(response).read_block()).subjects == ["by GET"]


async def test_position_beyond_stream_is_answered_by_resync(server: MerganserProcess) -> None:
    async with server.open_client("hal") as hal:
        current_cursor = await hal.load_cursor()
        version, stream_id, _number = current_cursor.split(".")[:3]
        future_cursor = ".".join([version, stream_id, str(1 << 40), *current_cursor.split(".")[3:]])
        async with subscribed_reader(hal, CHANGES_SUBSCRIPTION, future_cursor) as stream:
            block = await stream.read_block()
    assert [event["type"] for event in block.data["data"]["changes"]["events"]] == ["RESYNC"]
    assert block.id == current_cursor


async def test_cursor_of_other_user_is_refused(server: MerganserProcess) -> None:
    async with server.open_client("fay") as fay, server.open_client("hal") as hal:
        async with subscribed_reader(hal, last_event_id=await fay.load_cursor()) as stream:
            block = await stream.read_block()
        (error,) = block.data["errors"]
        assert error["extensions"]["code"] == "BAD_CURSOR"
        assert block.id is None


@pytest.mark.parametrize("last_event_id", ["7", "1.2", "x" * 5000, "1.1.99999999999999999999"])
async def test_invalid_last_event_id_is_refused(
    server: MerganserProcess, last_event_id: str
) -> None:
    async with server.open_client("hal") as hal:
        response = await hal.post(
            {"query": SUBJECTS_SUBSCRIPTION},
            **EVENT_STREAM_HEADERS,
            **{"Last-Event-ID": last_event_id},
        )
    assert response.status_code == 400
    assert response.headers["content-type"].startswith("application/json")
    assert [error["extensions"] for error in response.json()["errors"]] == [{"code": "BAD_CURSOR"}]


async def test_query_ignores_last_event_id(server: MerganserProcess) -> None:
    async with server.open_client("hal") as hal:
        response = await hal.post({"query": "{ viewer { role } }"}, **{"Last-Event-ID": "x"})
        assert response.json()["data"] == {"viewer": {"role": "USER"}}
        request_headers = {"Last-Event-ID": await hal.load_cursor(), **EVENT_STREAM_HEADERS}
        stream_response = await hal.post({"query": "{ viewer { role } }"}, **request_headers)
        assert "id:" not in stream_response.text


async def test_stopping_server_ends_streams_that_resume_after_restart(tmp_path: Path) -> None:
    """Streams end at once, without a log entry, and without an event that means completion."""
    server = MerganserProcess(tmp_path)
    server.create_users("hal")
    server.start()
    async with server.open_client("hal") as hal, subscribed_reader(hal) as stream:
        first_block = await stream.read_block()
        stop_task = asyncio.create_task(asyncio.to_thread(server.stop))
        async with asyncio.timeout(ANSWER_TIMEOUT):
            with pytest.raises((StopAsyncIteration, httpx.RemoteProtocolError)):
                await stream.read_block()
        await stop_task
    assert not server.unexpected_log_records()
    server.start()
    async with server.open_client("hal") as hal:
        await deliver_messages(server, "back again")
        async with subscribed_reader(hal, last_event_id=first_block.id) as stream:
            assert (await stream.read_block()).subjects == ["back again"]
    server.stop()
