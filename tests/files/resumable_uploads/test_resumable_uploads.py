"""Uploads in pieces, over real connections that break: the tus protocol."""

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import httpx
import pytest

from graph.app import create_app
from graph.http.graphql_endpoint import Settings
from graph.http.upload_body import Limits
from mail.files import resumable_file
from mail.maintenance.housekeeping import swept, tidy
from mail.smtp import spool_file
from models.errors import NotFound
from models.runtime.environment import World
from resolvers.files import uploads
from tests.conftest import Clock, context, raw_message
from tests.files.resumable_uploads.conftest import (
    MIB,
    MOST,
    PATH,
    PIECE,
    Connect,
    Sender,
    carol_spool,
    digested,
    key_of,
    pieces,
    still,
    told,
)
from tests.files.test_uploads import client_of, code, files, nothing_is_left, rows
from tests.support.mail.multipart_message import noise
from tests.support.servers.http_server import served


async def test_what_can_be_done_is_told_to_anybody(carol: Sender) -> None:
    for path in (PATH, f"{PATH}/any"):
        answer = await carol.client.http.options(path)
        assert answer.status_code == 204
        assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
        assert answer.headers["tus-max-size"] == str(MOST)
        assert set(answer.headers["tus-extension"].split(",")) == {
            "creation", "creation-with-upload", "expiration", "termination",
        }  # fmt: skip


async def test_a_file_in_pieces_is_whole_at_the_end(
    carol: Sender, tmp_path: Path, clock: Clock
) -> None:
    content = noise(3 * MIB + 5)
    meta = told(filename="C:\\x\\ü.png", filetype="Image/PNG") + ",is_confidential"
    answer = await carol.announce(len(content), **{"Upload-Metadata": meta})
    path = answer.headers["location"]
    assert answer.headers["upload-expires"] == "Wed, 02 Jan 2030 00:00:00 GMT"
    assert answer.json() == {
        "id": path.rsplit("/", 1)[-1],
        "size": len(content),
        "expiresAt": "2030-01-02T00:00:00Z",
    }
    clock.tick(hours=1)
    at = 0
    for size in (1, 2 * MIB, 0, 100_000, len(content)):
        assert await carol.offset(path) == at
        part = content[at : at + size]
        added = await carol.add(path, at, part)
        at += len(part)
        assert (added.status_code, added.headers["upload-offset"]) == (204, str(at))
        assert added.content == b""
        assert ("repr-digest" in added.headers) is (at == len(content))
        if at < len(content):
            with pytest.raises(NotFound):
                await uploads.read_upload(context(carol.client), key_of(path))
    assert added.headers["repr-digest"] == digested(content)
    whole = await carol.ask("HEAD", path)
    assert whole.headers["upload-offset"] == whole.headers["upload-length"] == str(len(content))
    assert whole.headers["upload-metadata"] == meta
    assert whole.headers["upload-expires"] == "Wed, 02 Jan 2030 01:00:00 GMT", "a day from its end"
    assert (await carol.add(path, len(content), b"")).status_code == 204
    assert (await carol.add(path, len(content), pieces(b"x"))).status_code == 413
    (row,) = await uploads.by_ids(context(carol.client), [key_of(path)])
    assert row
    assert (row.content_type, row.filename) == ("image/png", "ü.png")
    assert await uploads.read_upload(context(carol.client), key_of(path)) == content
    assert files(tmp_path / "spool") == []


async def test_a_mutation_takes_what_came_in_pieces(small: World, tmp_path: Path) -> None:
    raw = raw_message("In pieces")
    app = create_app(
        small, spool=tmp_path, settings=Settings(origins=("https://mail.example.org",))
    )
    async with (
        served(app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        carol = Sender(await client_of(small, http, "carol"), port)
        path = await carol.begin(len(raw))
        assert (await carol.add(path, 0, raw[:50])).status_code == 204
        assert (await carol.add(path, 50, raw[50:])).status_code == 204
        document = """mutation ($upload: Upload!) { messageUpload(input: {
          mailbox: {path: "INBOX"}, rawUpload: $upload}) { message { subject } } }"""
        done = await carol.client(document, upload=path.rsplit("/", 1)[-1])
        assert done["messageUpload"]["message"]["subject"] == "In pieces"
        await _a_browser_may(carol, path)


async def _a_browser_may(carol: Sender, path: str) -> None:
    origin = {"Origin": "https://mail.example.org"}
    sent = "authorization,content-type,tus-resumable,upload-length,upload-metadata,upload-offset"
    for method in ("POST", "HEAD", "PATCH", "DELETE"):
        asked = {
            **origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": f"{sent},x-http-method-override,x-request-id",
        }
        assert (await carol.client.http.options(path, headers=asked)).status_code == 200
    answer = await carol.ask("HEAD", path, headers=origin)
    shown = answer.headers["access-control-expose-headers"].lower().replace(" ", "").split(",")
    for name in ("location", "upload-offset", "upload-length", "tus-resumable", "upload-expires"):
        assert name in shown


async def test_what_came_before_the_line_broke_is_kept(carol: Sender, tmp_path: Path) -> None:
    content = noise(3 * MIB)
    path = await carol.begin(len(content))
    half = len(content) // 2
    _, writer = await carol.connect(path, 0, len(content), content[:half])
    writer.transport.abort()
    await carol.until(path, half)
    assert await carol.offset(path) == half
    assert (await carol.add(path, half, content[half:])).headers["repr-digest"] == digested(content)
    assert files(tmp_path / "spool") == []


async def test_another_server_goes_on_with_it(carol: Sender, connect: Connect) -> None:
    content = noise(2 * MIB)
    path = await carol.begin(len(content))
    await carol.add(path, 0, content[:MIB])
    other = await connect(carol.client)
    assert await other.offset(path) == MIB
    done = await other.add(path, MIB, content[MIB:])
    assert done.headers["repr-digest"] == digested(content)
    assert await carol.offset(path) == len(content)


async def test_after_a_day_it_is_gone_from_store_and_disk(
    carol: Sender, clock: Clock, tmp_path: Path
) -> None:
    world, folder = carol.client.world, tmp_path / "spool"
    old = await carol.begin(10)
    await carol.add(old, 0, b"12345")
    clock.tick(hours=23)
    young = await carol.begin(10)
    await carol.add(young, 0, b"12345")
    assert await carol.offset(old) == 5
    clock.tick(hours=1)
    for answer in (await carol.add(old, 5, b"67890"), await carol.ask("HEAD", old)):
        assert answer.status_code == 404
    assert len(files(folder)) == 2
    assert (await tidy(world, sweep=False)).uploads == 1
    assert await swept(world, folder) == 1
    assert files(folder) == [resumable_file.path_of(folder, key_of(young)).name]
    assert (await carol.add(young, 5, b"67890")).status_code == 204
    assert await swept(world, folder) == 0


async def test_two_at_once_are_not_taken(carol: Sender, connect: Connect) -> None:
    content = noise(2 * MIB)
    path = await carol.begin(len(content))
    reader, writer = await carol.connect(path, 0, len(content), content[:MIB])
    file = resumable_file.path_of(carol_spool(carol), key_of(path))
    async with asyncio.timeout(10):
        while not file.exists():  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)
    for sender in (carol, await connect(carol.client)):
        refused = await sender.add(path, 0, bytes(len(content)))
        assert (refused.status_code, code(refused)) == (423, "CONFLICT")
        assert refused.headers["retry-after"] == "1"
    writer.write(content[MIB:])
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 204")
    assert digested(content).encode() in answer
    writer.close()


async def test_who_has_fallen_silent_lets_go_when_another_comes(connect: Connect) -> None:
    carol = await connect("carol", Limits(idle=60, yields=0.1))
    path = await carol.begin(10)
    reader, writer = await carol.connect(path, 0, 10, b"12345")
    assert await still(reader)
    async with asyncio.timeout(10):
        while (again := await carol.add(path, await carol.offset(path), b"67890")).is_error:
            assert again.status_code in (409, 423)
            await asyncio.sleep(0.02)
    assert again.headers["upload-offset"] == "10"
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
    writer.close()
    assert await uploads.read_upload(context(carol.client), key_of(path)) == b"1234567890"


@pytest.mark.parametrize("limits", [Limits(idle=0.1), Limits(longest=0.1)])
async def test_a_body_that_stops_coming_is_ended_and_kept(connect: Connect, limits: Limits) -> None:
    carol = await connect("carol", limits)
    path = await carol.begin(10)
    reader, writer = await carol.connect(path, 0, 10, b"12345")
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503"), "a client of tus gives up at a 4xx"
    assert b"retry-after: 1" in head
    writer.close()
    assert await carol.offset(path) == 5


async def test_bytes_may_come_with_the_announcement(carol: Sender, tmp_path: Path) -> None:
    content = noise(MIB)
    named = {**PIECE, "Upload-Length": str(len(content))}
    whole = await carol.ask("POST", PATH, content=content, headers=named)
    assert (whole.status_code, whole.headers["upload-offset"]) == (201, str(len(content)))
    assert whole.json()["sha256"] == hashlib.sha256(content).hexdigest()
    part = await carol.ask("POST", PATH, content=content[:500], headers=named)
    assert (part.status_code, part.headers["upload-offset"]) == (201, "500")
    rest = await carol.add(part.headers["location"], 500, content[500:])
    assert rest.headers["repr-digest"] == digested(content)
    for refused in (
        await carol.ask("POST", PATH, content=content + b"x", headers=named),
        await carol.ask("POST", PATH, content=pieces(content, b"x"), headers=named),
    ):
        assert refused.status_code == 413
    assert len(await rows(carol.client.world)) == 2
    assert files(tmp_path / "spool") == []


async def test_an_empty_file_is_whole_at_once(carol: Sender) -> None:
    path = await carol.begin(0)
    assert await carol.offset(path) == 0
    assert await uploads.read_upload(context(carol.client), key_of(path)) == b""


async def test_what_is_ended_leaves_nothing(carol: Sender, tmp_path: Path) -> None:
    begun, whole = await carol.begin(10), await carol.begin(5)
    await carol.add(begun, 0, b"12345")
    await carol.add(whole, 0, b"12345")
    plain = await carol.client.http.post(PATH, content=b"plain", headers=carol.client.headers)
    for path in (begun, whole, plain.headers["location"]):
        assert (await carol.ask("DELETE", path)).status_code == 204
        assert (await carol.ask("DELETE", path)).status_code == 404
        assert (await carol.ask("HEAD", path)).status_code == 404
    await nothing_is_left(carol.client.world, tmp_path / "spool")


async def test_an_end_is_heard_by_who_is_sending(carol: Sender, tmp_path: Path) -> None:
    path = await carol.begin(10)
    reader, writer = await carol.connect(path, 0, 10, b"12345")
    assert await still(reader)
    assert (await carol.ask("DELETE", path)).status_code == 204
    writer.write(b"67890")
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    writer.close()
    await nothing_is_left(carol.client.world, tmp_path / "spool")


async def test_the_last_byte_is_promised_when_the_whole_is_stored(
    carol: Sender, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def broken(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = await carol.begin(10)
    with monkeypatch.context() as full:
        full.setattr(carol.client.world.blobs, "put_file", broken)
        assert (await carol.add(path, 0, b"1234567890")).status_code == 507
    assert await carol.offset(path) == 9
    assert (await carol.add(path, 9, b"0")).headers["repr-digest"] == digested(b"1234567890")
    assert files(tmp_path / "spool") == []


async def test_a_crash_takes_what_was_promised_to_nobody(carol: Sender) -> None:
    folder = carol_spool(carol)
    path = await carol.begin(10)
    await carol.add(path, 0, b"12345")
    os.close(spool_file.claim(folder))  # as at the next start
    file = resumable_file.path_of(folder, key_of(path))
    file.write_bytes(b"12345\0\0\0")
    assert await carol.offset(path) == 5
    assert (await carol.add(path, 5, b"67")).status_code == 204
    assert file.read_bytes() == b"1234567"
    file.write_bytes(b"1234")
    if carol.client.world.database.dialect == "postgresql":  # all bytes are in the object store
        assert await carol.offset(path) == 7
        done = await carol.add(path, 7, b"890")
        assert done.headers["repr-digest"] == digested(b"1234567890")
        return
    for answer in (await carol.ask("HEAD", path), await carol.add(path, 7, b"890")):
        assert answer.status_code == 404


async def test_bytes_are_promised_while_more_come(connect: Connect) -> None:
    carol = await connect("carol", Limits(checkpoint=MIB))
    content = noise(3 * MIB)
    path = await carol.begin(len(content))
    _, writer = await carol.connect(path, 0, len(content), content[: 2 * MIB + MIB // 2])
    await carol.until(path, 2 * MIB)
    writer.close()


async def test_who_can_only_post_says_which_method_is_meant(carol: Sender) -> None:
    path = await carol.begin(5)
    meant = {"X-HTTP-Method-Override": "PATCH", **PIECE, "Upload-Offset": "0"}
    added = await carol.ask("POST", path, content=b"12345", headers=meant)
    assert added.status_code == 204
    ended = await carol.ask("POST", path, headers={"X-HTTP-Method-Override": "DELETE"})
    assert ended.status_code == 204
    for method in ({}, {"X-HTTP-Method-Override": "PUT"}):
        refused = await carol.ask("POST", path, headers=method)
        assert (refused.status_code, code(refused)) == (405, "BAD_USER_INPUT")
        assert "PATCH" in refused.headers["allow"]
