"""Messages that are posted into a folder over HTTP."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from graph.http.upload_body import UploadLimits
from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import User
from tests.conftest import Client, make_key, raw_message
from tests.support.clients.upload_client import (
    MIB,
    error_code,
    file_names,
    make_upload_app,
    make_upload_client,
)
from tests.support.mail.multipart_message import RICH, noise
from tests.support.operations.message_sources import source
from tests.support.servers.http_server import vanishing
from tests.support.stores.counter_check import rows

MOST = 4 * MIB
pytestmark = pytest.mark.usefixtures("examined")


async def post(
    client: Client, box: str, content: Any, query: str = "", **headers: str
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {**client.headers, "content-type": "message/rfc822", **named}
    path = f"/rest/mailboxes/{box}/messages{query}"
    return await client.http.post(path, content=content, headers=given)


async def inbox(client: Client) -> str:
    return global_ids.encode("Mailbox", (await client.box()).id)


@pytest.fixture
def small(world: Environment) -> Environment:
    """A world in which messages have at most 4 MiB."""
    return replace(world, options=replace(world.options, message_max=MOST))


@pytest.fixture
async def carol(small: Environment, tmp_path: Path) -> AsyncIterator[Client]:
    transport = httpx.ASGITransport(app=make_upload_app(small, tmp_path / "spool"))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield await make_upload_client(small, http, "carol")


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 100_000):
        yield content[at : at + 100_000]


async def test_a_message_is_stored_byte_for_byte(ada: Client) -> None:
    box = await inbox(ada)
    bare = b"Subject: bare\n\nline\nends\n"
    for raw in (raw_message("Up"), bare, RICH):
        answer = await post(ada, box, pieces(raw))
        said = answer.json()
        assert (answer.status_code, set(said)) == (201, {"id", "uid", "mailbox"})
        path = f"/rest/messages/{said['id']}/message.eml"
        assert answer.headers["location"] == path
        got = await ada.http.get(path, headers=ada.headers)
        assert got.content == raw
        assert (said["mailbox"], said["uid"]) == (box, (await ada.box()).uid_next - 1)
    assert "ends" in await source(ada, (await post(ada, box, bare)).json()["id"])
    ((many,),) = await rows(ada.world, "SELECT count(*) FROM changes WHERE kind = 'MESSAGE_ADDED'")
    assert many == 4


@pytest.mark.parametrize(
    ("query", "flags"),
    [
        ("", (True, False, False)),
        ("?unseen=true", (False, False, False)),
        ("?unseen=0&flagged=1&draft=yes", (True, True, True)),
        ("?flagged=TRUE&unseen=no", (True, True, False)),
    ],
)
async def test_flags_are_said_in_the_address(
    ada: Client, query: str, flags: tuple[bool, ...]
) -> None:
    answer = await post(ada, await inbox(ada), raw_message(), query)
    assert answer.status_code == 201
    (row,) = await rows(ada.world, "SELECT seen, flagged, draft FROM messages")
    assert tuple(map(bool, row)) == flags


async def test_what_is_no_message_is_refused(ada: Client) -> None:
    box = await inbox(ada)
    gone = global_ids.encode("Mailbox", 7)
    for status, answer in (
        (400, await post(ada, box, b"")),
        (400, await post(ada, box, b" \r\n\r\n")),
        (400, await post(ada, box, b"a: b", "?seen=true")),
        (400, await post(ada, box, b"a: b", "?draft=maybe")),
        (404, await post(ada, gone, b"a: b")),
        (404, await post(ada, "x", b"a: b")),
        (404, await post(ada, global_ids.encode("Message", 7), b"a: b")),
        (415, await post(ada, box, b"a: b", content_type="application/x-www-form-urlencoded")),
        (415, await post(ada, box, b"a: b", content_type="multipart/form-data; boundary=x")),
        (415, await post(ada, box, b"a: b", content_encoding="gzip")),
    ):
        assert answer.status_code == status, answer.text
        assert answer.json()["errors"][0]["message"]
    assert await rows(ada.world, "SELECT id FROM messages") == []


async def test_nobody_posts_into_folders_of_others(ada: Client, bob: Client, root: Client) -> None:
    box, nobody = await inbox(ada), Client(ada.http, ada.world, ada.user, "")
    answers = [
        (await post(bob, box, b"a: b"), 404, "NOT_FOUND"),
        (await post(root, box, b"a: b"), 403, "FORBIDDEN"),
        (
            await post(nobody, box, b"a: b"),
            401,
            "UNAUTHENTICATED",
        ),
    ]
    for name, more in (
        ("boss", {"user_id": bob.user.id, "role": Role.ADMIN, "scopes": [Scope.MASTER]}),
        ("sender", {"scopes": [Scope.SUBMIT]}),
        ("reader", {"scopes": [Scope.MAIL_READ]}),
        ("shy", {"scopes": [Scope.MASTER], "read_only": True}),
    ):
        given = {"user_id": ada.user.id, "role": Role.USER, **more}
        key = Client(ada.http, ada.world, ada.user, await make_key(ada.world, name, **given))
        expected = (404, "NOT_FOUND") if name == "boss" else (403, "FORBIDDEN")
        answers.append((await post(key, box, b"a: b"), *expected))
    for answer, status, said in answers:
        assert (answer.status_code, error_code(answer)) == (status, said)
    assert await rows(ada.world, "SELECT id FROM messages") == []


async def test_what_is_too_large_is_refused_before_it_has_come(
    carol: Client, world: Environment, tmp_path: Path
) -> None:
    box = await inbox(carol)
    raw = b"Subject: x\r\n\r\n" + noise(MOST)
    assert (await post(carol, box, raw[:MOST])).status_code == 201
    for content in (raw, pieces(raw)):
        answer = await post(carol, box, content)
        assert (answer.status_code, error_code(answer)) == (413, "TOO_LARGE")

    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("it was asked for")
        yield b""

    async def allow(quota: int | None) -> None:
        async with world.write_session() as session:
            await session.exec(update(User).values(quota=quota))

    await allow(MOST + 10)
    for answer in (
        await post(carol, box, never(), content_length="11"),
        await post(carol, box, pieces(b"Subject: xy")),
    ):
        assert (answer.status_code, error_code(answer)) == (413, "QUOTA_EXCEEDED")
    assert (await post(carol, box, b"Subject: x")).status_code == 201
    await allow(None)
    assert file_names(tmp_path / "spool") == []


async def test_who_vanishes_leaves_nothing(carol: Client, tmp_path: Path) -> None:
    spool, box = tmp_path / "other", await inbox(carol)
    head = (
        f"POST /rest/mailboxes/{box}/messages HTTP/1.1\r\nHost: test\r\n"
        f"Authorization: {carol.headers['Authorization']}\r\n"
        f"Content-Type: message/rfc822\r\nContent-Length: {MOST}\r\n\r\n"
    )
    await vanishing(make_upload_app(carol.world, spool), spool, head.encode() + bytes(2 * MIB))
    assert await rows(carol.world, "SELECT id FROM messages") == []


async def test_without_room_it_is_refused(small: Environment, tmp_path: Path) -> None:
    for name, limits in (
        ("carol", UploadLimits(disk_reserve=1 << 60)),
        ("dave", UploadLimits(memory_budget=MIB)),
    ):
        transport = httpx.ASGITransport(app=make_upload_app(small, tmp_path / name, limits))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            client = await make_upload_client(small, http, name)
            answer = await post(client, await inbox(client), bytes(2 * MIB))
            assert (answer.status_code, error_code(answer)) == (507, "UNAVAILABLE")
