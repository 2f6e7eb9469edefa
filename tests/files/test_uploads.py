"""Bytes sent before the mutation that uses them."""

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col, select
from starlette.applications import Starlette

from graph.http import rest_routes
from graph.http.upload_body import Limits
from graph.types import global_ids
from mail.storage.blobs.errors import Corrupt
from models.errors import LimitReached, NotFound, RateLimited
from models.files.blobs import Upload
from models.runtime.environment import World
from models.store.columns import picked
from models.users.roles import Role, Scope
from resolvers.auth import authentication
from resolvers.context import Viewer
from resolvers.files import uploads
from resolvers.files.uploads import Received
from tests.conftest import Client, Clock, context, make_key, make_user
from tests.support.mail.multipart_message import noise
from tests.support.servers.http_server import served, vanishing

MIB = 1 << 20
MOST = 3 * MIB
PATH = "/rest/uploads"


@pytest.fixture
def small(world: World) -> World:
    """A world in which uploads have at most 3 MiB."""
    return replace(world, options=replace(world.options, upload_max=MOST))


def app_of(world: World, spool: Path, limits: Limits | None = None) -> Starlette:
    async def sign_in(headers: Mapping[str, str], ip: str | None) -> Viewer:
        return await authentication.sign_in(world, headers, ip=ip)

    return Starlette(routes=rest_routes.routes(world, sign_in, spool, limits))


Connect = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def connect(small: World, tmp_path: Path) -> AsyncIterator[Connect]:
    async with contextlib.AsyncExitStack() as stack:

        def client(limits: Limits | None = None) -> httpx.AsyncClient:
            app = app_of(small, tmp_path / "spool", limits)
            made = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
            stack.push_async_callback(made.aclose)
            return made

        yield client


async def client_of(world: World, http: httpx.AsyncClient, name: str, **more: Any) -> Client:
    user = await make_user(world, name)
    given = {"scopes": [Scope.MASTER], **more}
    secret = await make_key(world, name, user_id=user.id, role=Role.USER, **given)
    return Client(http, world, user, secret)


@pytest.fixture
async def carol(small: World, connect: Connect) -> Client:
    return await client_of(small, connect(), "carol")


@pytest.fixture
async def dave(small: World, connect: Connect) -> Client:
    return await client_of(small, connect(), "dave")


async def send(client: Client, content: Any, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.http.post(PATH, content=content, headers={**client.headers, **named})


def code(response: httpx.Response) -> str:
    (error,) = response.json()["errors"]
    return str(error["extensions"]["code"])


async def rows(world: World) -> list[Any]:
    return list(await world.database.read(select(*picked(Upload))))


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def nothing_is_left(world: World, spool: Path) -> None:
    assert await rows(world) == []
    assert [stored async for stored in world.blobs.list()] == []
    assert files(spool) == []


def received(content: bytes = b"x", **more: Any) -> Received:
    return Received(content, len(content), hashlib.sha256(content).hexdigest(), **more)


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
    (row,) = await uploads.by_ids(context(carol), [key])
    assert row
    assert (row.content_type, row.filename) == ("image/png", "nü.png")
    assert await uploads.read_upload(context(carol), key) == content
    assert files(tmp_path / "spool") == []
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
    found = uploads.described(headers)
    assert found == (kind or "application/octet-stream", name)


async def test_an_upload_is_its_senders_alone(carol: Client, dave: Client) -> None:
    key = global_ids.decode("Upload", (await send(carol, b"mine")).json()["id"])
    assert await uploads.by_ids(context(dave), [key]) == [None]
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
    small: World, connect: Connect, more: dict[str, Any], status: int
) -> None:
    client = await client_of(small, connect(), "carol", **more)
    answer = await send(client, b"hello")
    assert answer.status_code == status
    assert len(await rows(small)) == (status == 201)


async def test_nobody_and_a_key_of_no_user_may_not(small: World, connect: Connect) -> None:
    http = connect()
    nobody = await http.post(PATH, content=b"x")
    assert (nobody.status_code, code(nobody)) == (401, "UNAUTHENTICATED")
    secret = await make_key(small, "root", role=Role.ROOT, scopes=[Scope.MASTER])
    root = await http.post(PATH, content=b"x", headers={"x-api-key": secret})
    assert (root.status_code, code(root)) == (403, "FORBIDDEN")
    assert (await http.get(PATH)).status_code == 405


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def test_too_much_is_refused_announced_or_not(carol: Client, tmp_path: Path) -> None:
    announced = await send(carol, pieces(b"x"), content_length=str(MOST + 1))
    absurd = await send(carol, pieces(b"x"), content_length="9" * 5000)
    silent = await send(carol, pieces(*[bytes(MIB)] * 3, b"x"))
    for answer in (announced, absurd, silent):
        assert (answer.status_code, code(answer)) == (413, "TOO_LARGE")
    await nothing_is_left(carol.world, tmp_path / "spool")


async def test_odd_bodies_are_refused(carol: Client) -> None:
    packed = await send(carol, b"x", content_encoding="gzip")
    assert (packed.status_code, code(packed)) == (415, "BAD_USER_INPUT")
    odd = await send(carol, pieces(b"x"), content_length="-1")
    assert (odd.status_code, code(odd)) == (400, "BAD_USER_INPUT")


async def test_a_hundred_may_wait_and_no_more_until_one_is_over(
    carol: Client, dave: Client, clock: Clock
) -> None:
    for _ in range(uploads.MOST):
        await uploads.finish(context(carol), received())
    clock.tick(hours=1)
    answer = await send(carol, b"x")
    assert (answer.status_code, code(answer)) == (429, "RATE_LIMITED")
    assert answer.headers["retry-after"] == str(23 * 3600)
    assert (await send(dave, b"x")).status_code == 201
    with pytest.raises(RateLimited):  # who was under way when the last place was taken
        await uploads.finish(context(carol), received())
    stored = [stored async for stored in carol.world.blobs.list()]
    assert len(stored) == uploads.MOST + 1, "nothing is left of what was refused"
    clock.tick(hours=23)
    assert (await send(carol, b"x")).status_code == 201


async def test_bytes_that_wait_are_limited_too(
    carol: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 100)
    assert (await send(carol, bytes(60))).status_code == 201
    announced = await send(carol, bytes(41))
    silent = await send(carol, pieces(bytes(41)))
    for answer in (announced, silent):
        assert (answer.status_code, code(answer)) == (413, "LIMIT_REACHED")
        facts = answer.json()["errors"][0]["extensions"]
        assert (facts["limit"], facts["used"]) == (100, 60)
    assert (await send(carol, bytes(40))).status_code == 201


async def test_many_at_once_keep_to_the_limit(
    carol: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST", 3)
    coming = (uploads.finish(context(carol), received(b"%d" % n)) for n in range(10))
    outcomes = await asyncio.gather(*coming, return_exceptions=True)
    assert sum(isinstance(outcome, RateLimited) for outcome in outcomes) == 7
    assert len(await rows(carol.world)) == 3


async def test_a_few_at_once_are_enough(small: World, connect: Connect) -> None:
    client = await client_of(small, connect(Limits(at_once=1)), "carol")
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await go.wait()
        yield b"slow"

    first = asyncio.create_task(send(client, slow()))
    await begun.wait()
    second = await send(client, b"fast")
    assert (second.status_code, code(second)) == (429, "RATE_LIMITED")
    go.set()
    assert (await first).status_code == 201
    assert (await send(client, b"later")).status_code == 201


async def test_a_body_that_stops_coming_is_given_up(
    small: World, connect: Connect, tmp_path: Path
) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        await asyncio.sleep(60)

    idle = await client_of(small, connect(Limits(idle=0.1)), "carol")
    late = await client_of(small, connect(Limits(longest=0.1)), "dave")
    for client in (idle, late):
        answer = await send(client, stuck())
        assert (answer.status_code, code(answer)) == (408, "DEADLINE_EXCEEDED")
    await nothing_is_left(small, tmp_path / "spool")


async def test_without_room_it_is_refused_and_nothing_stays(
    small: World, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    carol = await client_of(small, connect(Limits(disk_reserve=1 << 60)), "carol")
    dave = await client_of(small, connect(Limits(budget=MIB)), "dave")
    erin = await client_of(small, connect(), "erin")
    monkeypatch.setattr(small.blobs, "put", full)
    for client, size in ((carol, 1), (dave, 2 * MIB), (erin, 1)):
        answer = await send(client, bytes(size))
        assert (answer.status_code, code(answer)) == (507, "UNAVAILABLE")
    await nothing_is_left(small, tmp_path / "spool")


async def test_a_damaged_or_lost_upload_is_not_given_out(carol: Client) -> None:
    world, key = carol.world, global_ids.decode("Upload", (await send(carol, b"good")).json()["id"])
    (row,) = await rows(world)
    await world.blobs.put(row.blob_name, b"evil")
    with pytest.raises(Corrupt):
        await uploads.read_upload(context(carol), key)
    await world.blobs.delete([row.blob_name])
    with pytest.raises(Corrupt, match="lost"):
        await uploads.read_upload(context(carol), key)


async def test_who_vanishes_leaves_nothing(carol: Client, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: test\r\nAuthorization: {carol.headers['Authorization']}\r\n"
        f"Content-Length: {MOST}\r\n\r\n"
    )
    await vanishing(app_of(carol.world, spool), spool, head.encode() + bytes(2 * MIB))
    await nothing_is_left(carol.world, spool)


async def test_a_refusal_reaches_who_has_not_sent_a_byte(carol: Client, tmp_path: Path) -> None:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: test\r\nAuthorization: {carol.headers['Authorization']}\r\n"
        f"Content-Length: {MOST + 1}\r\nExpect: 100-continue\r\n\r\n"
    )
    async with served(app_of(carol.world, tmp_path / "spool")) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_what_waits_is_counted_anew_when_the_bytes_are_there(carol: Client) -> None:
    await uploads.finish(context(carol), received())
    async with carol.world.write() as session:
        await session.exec(update(Upload).values(size=uploads.MOST_BYTES).where(col(Upload.id) > 0))
    with pytest.raises(LimitReached):
        await uploads.finish(context(carol), received())
