"""Server-sent events with ids: who says in Last-Event-ID what came last misses nothing."""

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
from tests.support.servers.merganser_server import ANSWER, Client, Server

BARE = "subscription { changes { events { ... on MessageChange { message { subject } } } } }"
TOLD = "subscription ($after: Cursor) { changes(after: $after) { cursor events { kind } } }"
STORES = ["sqlite"]  # a journal is followed in the same way on both
EVENTS = {"Accept": "text/event-stream"}


@dataclass
class Block:
    """What stands between two empty lines, comments aside."""

    id: str | None = None
    event: str | None = None
    data: Any = None

    @property
    def subjects(self) -> list[str]:
        events = self.data["data"]["changes"]["events"]
        return [event["message"]["subject"] for event in events]


class Reader:
    """Reads blocks as the HTML standard tells, and takes LF only for the end of a line."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._chunks = response.aiter_text()
        self._text = ""

    async def hear(self) -> Block:
        async with asyncio.timeout(ANSWER):
            while True:
                while "\n\n" not in self._text:
                    self._text += await anext(self._chunks)
                whole, self._text = self._text.split("\n\n", 1)
                assert "\r" not in whole
                lines = [line for line in whole.split("\n") if not line.startswith(":")]
                if lines:
                    return _block(lines)


def _block(lines: list[str]) -> Block:
    fields = dict(line.split(": ", 1) for line in lines)
    data = fields.get("data")
    return Block(fields.get("id"), fields.get("event"), json.loads(data) if data else None)


@asynccontextmanager
async def following(
    client: Client, query: str = BARE, last: str | None = None, **variables: Any
) -> AsyncGenerator[Reader]:
    headers = EVENTS | ({"Last-Event-ID": last} if last else {})
    asked = {"query": query, "variables": variables}
    async with client.http.stream("POST", "/graphql", json=asked, headers=headers) as response:
        assert response.status_code == 200
        yield Reader(response)


async def arrived(server: Server, *subjects: str, to: str = "hal") -> None:
    for subject in subjects:
        answer = await server.deliver(raw_message(subject), f"{to}@example.org")
        assert answer.startswith("250 2.0.0 Delivered")


async def test_every_event_has_an_id_though_no_cursor_is_asked_for(server: Server) -> None:
    async with server.client("hal") as hal, following(hal) as stream:
        begin = await stream.hear()
        assert (begin.id, begin.event, begin.data) == (await hal.cursor(), None, None)
        await arrived(server, "one")
        first = await stream.hear()
        assert (first.event, first.subjects) == ("next", ["one"])
        assert first.id == await hal.cursor() != begin.id


async def test_the_id_is_the_cursor_of_the_batch(server: Server) -> None:
    async with server.client("hal") as hal:
        after = await hal.cursor()
        await arrived(server, "two")
        async with following(hal, TOLD, after=after) as stream:
            heard = await stream.hear()
            assert heard.id == heard.data["data"]["changes"]["cursor"]


async def test_who_is_cut_off_before_the_first_event_misses_none(server: Server) -> None:
    async with server.client("hal") as hal:
        async with following(hal) as stream:
            begin = await stream.hear()
        await arrived(server, "while away")
        async with following(hal, last=begin.id) as stream:
            assert (await stream.hear()).subjects == ["while away"]


async def test_who_is_cut_off_at_each_event_hears_all_once_and_in_order(server: Server) -> None:
    sent = [f"letter {number}" for number in range(5)]
    heard: list[str] = []
    async with server.client("hal") as hal:
        last: str | None = await hal.cursor()
        for subject in sent:
            async with following(hal, last=last) as stream:
                await arrived(server, subject)
                block = await stream.hear()
                heard += block.subjects
                last = block.id
                await arrived(server, f"after {subject}")  # on its way when the line is cut
            async with following(hal, last=last) as stream:
                block = await stream.hear()
                heard += block.subjects
                last = block.id
    assert heard == [each for subject in sent for each in (subject, f"after {subject}")]


async def test_what_came_last_goes_before_what_the_document_says(server: Server) -> None:
    """A browser that connects again sends the same address, with the `after` of the first time."""
    async with server.client("hal") as hal:
        old = await hal.cursor()
        await arrived(server, "heard already")
        last = await hal.cursor()
        await arrived(server, "not yet heard")
        async with following(hal, TOLD, last, after=old) as stream:
            heard = await stream.hear()
    assert heard.id != last
    assert len(heard.data["data"]["changes"]["events"]) == 1


async def test_by_get_too_as_browsers_do(server: Server) -> None:
    async with server.client("hal") as hal:
        last = await hal.cursor()
        await arrived(server, "by GET")
        headers = EVENTS | {"Last-Event-ID": last}
        asked = hal.http.stream("GET", "/graphql", params={"query": BARE}, headers=headers)
        async with asked as response:
            assert (await Reader(response).hear()).subjects == ["by GET"]


async def test_a_position_that_was_never_reached_is_a_resync(server: Server) -> None:
    async with server.client("hal") as hal:
        now = await hal.cursor()
        form, stream_id, _number = now.split(".")[:3]
        ahead = ".".join([form, stream_id, str(1 << 40), *now.split(".")[3:]])
        async with following(hal, TOLD, ahead) as stream:
            heard = await stream.hear()
    assert [each["kind"] for each in heard.data["data"]["changes"]["events"]] == ["RESYNC"]
    assert heard.id == now


async def test_somebody_elses_position_is_refused(server: Server) -> None:
    async with server.client("fay") as fay, server.client("hal") as hal:
        async with following(hal, last=await fay.cursor()) as stream:
            heard = await stream.hear()
        (error,) = heard.data["errors"]
        assert error["extensions"]["code"] == "BAD_CURSOR"
        assert heard.id is None


@pytest.mark.parametrize("last", ["7", "1.2", "x" * 5000, "1.1.99999999999999999999"])
async def test_what_is_no_cursor_is_refused(server: Server, last: str) -> None:
    async with server.client("hal") as hal:
        answer = await hal.post({"query": BARE}, **EVENTS, **{"Last-Event-ID": last})
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("application/json")
    assert [each["extensions"] for each in answer.json()["errors"]] == [{"code": "BAD_CURSOR"}]


async def test_queries_do_not_mind_it(server: Server) -> None:
    async with server.client("hal") as hal:
        answer = await hal.post({"query": "{ viewer { role } }"}, **{"Last-Event-ID": "x"})
        assert answer.json()["data"] == {"viewer": {"role": "USER"}}
        asked = {"Last-Event-ID": await hal.cursor(), **EVENTS}
        streamed = await hal.post({"query": "{ viewer { role } }"}, **asked)
        assert "id:" not in streamed.text


async def test_a_server_that_stops_lets_streams_go_and_they_come_back(tmp_path: Path) -> None:
    """At once, without an error in its log, and without an end that clients would believe."""
    server = Server(tmp_path)
    server.make("hal")
    server.start()
    async with server.client("hal") as hal, following(hal) as stream:
        begin = await stream.hear()
        ending = asyncio.create_task(asyncio.to_thread(server.stop))
        async with asyncio.timeout(ANSWER):
            with pytest.raises((StopAsyncIteration, httpx.RemoteProtocolError)):
                await stream.hear()
        await ending
    assert not server.complaints()
    server.start()
    async with server.client("hal") as hal:
        await arrived(server, "back again")
        async with following(hal, last=begin.id) as stream:
            assert (await stream.hear()).subjects == ["back again"]
    server.stop()
