"""Bytes sent before the mutation that uses them."""

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.http.upload_body import UploadLimits
from graph.types import global_ids
from mail.storage.blobs.errors import CorruptBlob
from models.errors import LimitReached, NotFound, RateLimited
from models.files.blobs import Upload
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.files import uploads
from resolvers.files.uploads import ReceivedFile
from tests.conftest import Client, Clock, context, make_key
from tests.support.clients.upload_client import (
    MIB,
    assert_nothing_left,
    error_code,
    file_names,
    load_upload_rows,
    make_upload_app,
    make_upload_client,
)
from tests.support.mail.multipart_message import noise
from tests.support.servers.http_server import served, vanishing

MOST = 3 * MIB
PATH = "/rest/uploads"


@pytest.fixture
def small(world: Environment) -> Environment:
    """A world in which uploads have at most 3 MiB."""
    return replace(world, options=replace(world.options, upload_max=MOST))


Connect = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def connect(small: Environment, tmp_path: Path) -> AsyncIterator[Connect]:
    async with contextlib.AsyncExitStack() as stack:

        def client(limits: UploadLimits | None = None) -> httpx.AsyncClient:
            app = make_upload_app(small, tmp_path / "spool", limits)
            made = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
            stack.push_async_callback(made.aclose)
            return made

        yield client


@pytest.fixture
async def carol(small: Environment, connect: Connect) -> Client:
    return await make_upload_client(small, connect(), "carol")


@pytest.fixture
async def dave(small: Environment, connect: Connect) -> Client:
    return await make_upload_client(small, connect(), "dave")


async def send(client: Client, content: Any, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.http.post(PATH, content=content, headers={**client.headers, **named})


def received(content: bytes = b"x", **more: Any) -> ReceivedFile:
    return ReceivedFile(content, len(content), hashlib.sha256(content).hexdigest(), **more)


@pytest.mark.parametrize("size", [0, 1, 100_000, 2 * MIB, MOST])
async def test_what_is_sent_is_kept_for_a_day(
    carol: Client, tmp_path: Path, clock: Clock, size: int
) -> None:
    content = noise(size)
    answer = await send(
        carol,
        content,
        content_type="Image/PNG; x=y",
        content_disposition="attachment; filename*=UTF-8''..%2Fn%C3%BC.png",
    )
    assert answer.status_code == 201
    said = answer.json()
    key = global_ids.decode("Upload", said.pop("id"))
    digest = hashlib.sha256(content).hexdigest()
    assert said == {"size": size, "sha256": digest, "expiresAt": "2030-01-02T00:00:00Z"}
    (row,) = await uploads.load_uploads_by_id(context(carol), [key])
    assert row
    assert (row.content_type, row.filename) == ("image/png", "nü.png")
    assert await uploads.read_upload(context(carol), key) == content
    assert file_names(tmp_path / "spool") == []
    clock.tick(hours=24)
    with pytest.raises(NotFound):
        await uploads.read_upload(context(carol), key)


@pytest.mark.parametrize(
    ("headers", "kind", "name"),
    [
        ({}, "application/octet-stream", None),
        ({"content-type": "nonsense"}, "application/octet-stream", None),
        ({"content-type": "text/html, x"}, "application/octet-stream", None),
        ({"content-disposition": 'attachment; filename="a b.txt"'}, None, "a b.txt"),
        ({"content-disposition": 'attachment; filename="C:\\\\x\\\\b.txt"'}, None, "b.txt"),
        ({"content-disposition": "attachment; filename=/"}, None, None),
        ({"content-disposition": f"attachment; filename={'n' * 999}"}, None, "n" * 255),
    ],
)
def test_kind_and_name_are_taken_from_the_headers(
    headers: dict[str, str], kind: str | None, name: str | None
) -> None:
    found = uploads.type_and_name_from_headers(headers)
    assert found == (kind or "application/octet-stream", name)


async def test_an_upload_is_its_senders_alone(carol: Client, dave: Client) -> None:
    key = global_ids.decode("Upload", (await send(carol, b"mine")).json()["id"])
    assert await uploads.load_uploads_by_id(context(dave), [key]) == [None]
    for wrong in (key, key + 1):
        with pytest.raises(NotFound):
            await uploads.read_upload(context(dave), wrong)
    assert await uploads.read_upload(context(carol), key) == b"mine"


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"scopes": [Scope.MAIL]}, 201),
        ({"scopes": [Scope.SUBMIT]}, 201),
        ({"scopes": [Scope.MAIL_READ]}, 403),
        ({"scopes": [Scope.SETTINGS]}, 403),
        ({"read_only": True}, 403),
    ],
)
async def test_only_who_may_write_or_send_mail_may_upload(
    small: Environment, connect: Connect, more: dict[str, Any], status: int
) -> None:
    client = await make_upload_client(small, connect(), "carol", **more)
    answer = await send(client, b"hello")
    assert answer.status_code == status
    assert len(await load_upload_rows(small)) == (status == 201)


async def test_nobody_and_a_key_of_no_user_may_not(small: Environment, connect: Connect) -> None:
    http = connect()
    nobody = await http.post(PATH, content=b"x")
    assert (nobody.status_code, error_code(nobody)) == (401, "UNAUTHENTICATED")
    secret = await make_key(small, "root", role=Role.ROOT, scopes=[Scope.MASTER])
    root = await http.post(PATH, content=b"x", headers={"x-api-key": secret})
    assert (root.status_code, error_code(root)) == (403, "FORBIDDEN")
    assert (await http.get(PATH)).status_code == 405


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def test_too_much_is_refused_announced_or_not(carol: Client, tmp_path: Path) -> None:
    announced = await send(carol, pieces(b"x"), content_length=str(MOST + 1))
    absurd = await send(carol, pieces(b"x"), content_length="9" * 5000)
    silent = await send(carol, pieces(*[bytes(MIB)] * 3, b"x"))
    for answer in (announced, absurd, silent):
        assert (answer.status_code, error_code(answer)) == (413, "TOO_LARGE")
    await assert_nothing_left(carol.world, tmp_path / "spool")


async def test_odd_bodies_are_refused(carol: Client) -> None:
    packed = await send(carol, b"x", content_encoding="gzip")
    assert (packed.status_code, error_code(packed)) == (415, "BAD_USER_INPUT")
    odd = await send(carol, pieces(b"x"), content_length="-1")
    assert (odd.status_code, error_code(odd)) == (400, "BAD_USER_INPUT")


async def test_a_hundred_may_wait_and_no_more_until_one_is_over(
    carol: Client, dave: Client, clock: Clock
) -> None:
    for _ in range(uploads.MAX_UPLOADS):
        await uploads.store_upload(context(carol), received())
    clock.tick(hours=1)
    answer = await send(carol, b"x")
    assert (answer.status_code, error_code(answer)) == (429, "RATE_LIMITED")
    assert answer.headers["retry-after"] == str(23 * 3600)
    assert (await send(dave, b"x")).status_code == 201
    with pytest.raises(RateLimited):  # who was under way when the last place was taken
        await uploads.store_upload(context(carol), received())
    stored = [stored async for stored in carol.world.object_store.list()]
    assert len(stored) == uploads.MAX_UPLOADS + 1, "nothing is left of what was refused"
    clock.tick(hours=23)
    assert (await send(carol, b"x")).status_code == 201


async def test_bytes_that_wait_are_limited_too(
    carol: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_TOTAL_BYTES", 100)
    assert (await send(carol, bytes(60))).status_code == 201
    announced = await send(carol, bytes(41))
    silent = await send(carol, pieces(bytes(41)))
    for answer in (announced, silent):
        assert (answer.status_code, error_code(answer)) == (413, "LIMIT_REACHED")
        facts = answer.json()["errors"][0]["extensions"]
        assert (facts["limit"], facts["used"]) == (100, 60)
    assert (await send(carol, bytes(40))).status_code == 201


async def test_many_at_once_keep_to_the_limit(
    carol: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 3)
    coming = (uploads.store_upload(context(carol), received(b"%d" % n)) for n in range(10))
    outcomes = await asyncio.gather(*coming, return_exceptions=True)
    assert sum(isinstance(outcome, RateLimited) for outcome in outcomes) == 7
    assert len(await load_upload_rows(carol.world)) == 3


async def test_a_few_at_once_are_enough(small: Environment, connect: Connect) -> None:
    client = await make_upload_client(small, connect(UploadLimits(max_per_user=1)), "carol")
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await go.wait()
        yield b"slow"

    first = asyncio.create_task(send(client, slow()))
    await begun.wait()
    second = await send(client, b"fast")
    assert (second.status_code, error_code(second)) == (429, "RATE_LIMITED")
    go.set()
    assert (await first).status_code == 201
    assert (await send(client, b"later")).status_code == 201


async def test_a_body_that_stops_coming_is_given_up(
    small: Environment, connect: Connect, tmp_path: Path
) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        await asyncio.sleep(60)

    idle = await make_upload_client(small, connect(UploadLimits(idle_timeout=0.1)), "carol")
    late = await make_upload_client(small, connect(UploadLimits(body_timeout=0.1)), "dave")
    for client in (idle, late):
        answer = await send(client, stuck())
        assert (answer.status_code, error_code(answer)) == (408, "DEADLINE_EXCEEDED")
    await assert_nothing_left(small, tmp_path / "spool")


async def test_without_room_it_is_refused_and_nothing_stays(
    small: Environment, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    carol = await make_upload_client(small, connect(UploadLimits(disk_reserve=1 << 60)), "carol")
    dave = await make_upload_client(small, connect(UploadLimits(memory_budget=MIB)), "dave")
    erin = await make_upload_client(small, connect(), "erin")
    monkeypatch.setattr(small.object_store, "put", full)
    for client, size in ((carol, 1), (dave, 2 * MIB), (erin, 1)):
        answer = await send(client, bytes(size))
        assert (answer.status_code, error_code(answer)) == (507, "UNAVAILABLE")
    await assert_nothing_left(small, tmp_path / "spool")


async def test_a_damaged_or_lost_upload_is_not_given_out(carol: Client) -> None:
    world, key = carol.world, global_ids.decode("Upload", (await send(carol, b"good")).json()["id"])
    (row,) = await load_upload_rows(world)
    await world.object_store.put(row.blob_name, b"evil")
    with pytest.raises(CorruptBlob):
        await uploads.read_upload(context(carol), key)
    await world.object_store.delete([row.blob_name])
    with pytest.raises(CorruptBlob, match="lost"):
        await uploads.read_upload(context(carol), key)


async def test_who_vanishes_leaves_nothing(carol: Client, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: test\r\nAuthorization: {carol.headers['Authorization']}\r\n"
        f"Content-Length: {MOST}\r\n\r\n"
    )
    await vanishing(make_upload_app(carol.world, spool), spool, head.encode() + bytes(2 * MIB))
    await assert_nothing_left(carol.world, spool)


async def test_a_refusal_reaches_who_has_not_sent_a_byte(carol: Client, tmp_path: Path) -> None:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: test\r\nAuthorization: {carol.headers['Authorization']}\r\n"
        f"Content-Length: {MOST + 1}\r\nExpect: 100-continue\r\n\r\n"
    )
    async with served(make_upload_app(carol.world, tmp_path / "spool")) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_what_waits_is_counted_anew_when_the_bytes_are_there(carol: Client) -> None:
    await uploads.store_upload(context(carol), received())
    async with carol.world.write_session() as session:
        await session.exec(
            update(Upload).values(size=uploads.MAX_TOTAL_BYTES).where(col(Upload.id) > 0)
        )
    with pytest.raises(LimitReached):
        await uploads.store_upload(context(carol), received())
