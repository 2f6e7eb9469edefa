"""What is refused of uploads in pieces, before or while they come."""

import errno
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from graph.http.upload_body import Limits
from graph.types import global_ids
from models.runtime.environment import World
from models.users.roles import Scope
from resolvers.files import resumable_uploads, uploads
from tests.conftest import context
from tests.files.resumable_uploads.conftest import (
    MIB,
    MOST,
    PATH,
    PIECE,
    Connect,
    Sender,
    digested,
    pieces,
    told,
)
from tests.files.test_uploads import client_of, code, files, rows
from tests.support.servers.http_server import served

WRONG: list[tuple[str | None, int, str]] = [
    ("0", 409, "STALE"),
    ("4", 409, "STALE"),
    ("6", 409, "STALE"),
    ("9" * 5000, 409, "STALE"),
    ("-1", 400, "BAD_USER_INPUT"),
    ("", 400, "BAD_USER_INPUT"),
    ("5.0", 400, "BAD_USER_INPUT"),
    (None, 400, "BAD_USER_INPUT"),
]


async def test_at_a_wrong_offset_nothing_is_added(carol: Sender) -> None:
    path = await carol.begin(10)
    await carol.add(path, 0, b"12345")
    for offset, status, said in WRONG:
        headers = {**PIECE, **({} if offset is None else {"Upload-Offset": offset})}
        answer = await carol.ask("PATCH", path, content=b"x", headers=headers)
        assert (answer.status_code, code(answer)) == (status, said), offset
        assert answer.headers["tus-resumable"] == "1.0.0"
        assert status != 409 or answer.headers["upload-offset"] == "5"
    assert (await carol.add(path, 5, b"67890")).headers["repr-digest"] == digested(b"1234567890")


async def test_another_version_is_not_spoken(carol: Sender) -> None:
    path = await carol.begin(10)
    http = carol.client.http
    for version in (None, "0.2.2", "1.0.1", ""):
        named = {**carol.client.headers, **({} if version is None else {"Tus-Resumable": version})}
        piece = {**named, **PIECE, "Upload-Offset": "0"}
        for answer in (
            await http.post(PATH, headers={**named, "Upload-Length": "5"}),
            await http.patch(path, content=b"x", headers=piece),
            await http.delete(path, headers=named),
        ):
            assert (answer.status_code, answer.headers["tus-version"]) == (412, "1.0.0")
    assert len(await rows(carol.client.world)) == 1
    assert await carol.offset(path) == 0


ANNOUNCED: list[tuple[dict[str, Any], int]] = [
    ({}, 400),
    ({"Upload-Length": "-1"}, 400),
    ({"Upload-Length": "1e3"}, 400),
    ({"Upload-Length": "٣".encode()}, 400),
    ({"Upload-Length": "5", "Upload-Defer-Length": "1"}, 400),
    ({"Upload-Length": "5", "Upload-Concat": "partial"}, 400),
    ({"Upload-Length": str(MOST + 1)}, 413),
    ({"Upload-Length": "9" * 5000}, 413),
    ({"Upload-Length": "5", "Upload-Metadata": "filename"}, 201),
    ({"Upload-Length": "5", "Upload-Metadata": "filename !"}, 400),
    ({"Upload-Length": "5", "Upload-Metadata": "filename /w=="}, 400),
    ({"Upload-Length": "5", "Upload-Metadata": "a YQ==,a YQ=="}, 400),
    ({"Upload-Length": "5", "Upload-Metadata": "a YQ==,,b"}, 400),
    ({"Upload-Length": "5", "Upload-Metadata": told(name="a\0b\r\n")}, 201),
    ({"Upload-Length": "5", "Upload-Metadata": told(name="x" * 9999)}, 400),
]


async def test_what_is_announced_wrongly_is_refused(carol: Sender) -> None:
    for headers, status in ANNOUNCED:
        answer = await carol.ask("POST", PATH, headers=headers)
        assert answer.status_code == status, headers
    taken = sum(status == 201 for _, status in ANNOUNCED)
    assert len(await rows(carol.client.world)) == taken


async def test_bodies_of_another_kind_are_refused(carol: Sender) -> None:
    path = await carol.begin(10)
    for headers in (
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {**PIECE, "Content-Encoding": "gzip"},
    ):
        named = {"Upload-Length": "10", "Upload-Offset": "0", **headers}
        patched = await carol.ask("PATCH", path, content=b"x", headers=named)
        created = await carol.ask("POST", PATH, content=b"x", headers=named)
        for answer in (patched, created):
            assert (answer.status_code, code(answer)) == (415, "BAD_USER_INPUT")
    assert await carol.offset(path) == 0
    assert len(await rows(carol.client.world)) == 1


async def test_forms_are_no_uploads_on_any_road(small: World, tmp_path: Path) -> None:
    async with (
        served(create_app(small, spool=tmp_path)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        carol = await client_of(small, http, "carol")
        for path in (PATH, "/graphql"):
            form = {"operations": b'{"query": "{ __typename }"}', "0": b"x"}
            answer = await http.post(path, files=form, headers=carol.headers)
            assert (answer.status_code, code(answer)) == (415, "BAD_USER_INPUT")
            assert answer.headers["content-type"].startswith("application/json")


async def test_more_than_was_announced_is_refused(carol: Sender) -> None:
    path = await carol.begin(10)
    announced = await carol.add(path, 0, bytes(11))
    assert (announced.status_code, code(announced)) == (413, "TOO_LARGE")
    assert await carol.offset(path) == 0
    silent = await carol.add(path, 0, pieces(b"12345", b"6789012"))
    assert (silent.status_code, code(silent)) == (413, "TOO_LARGE")
    assert await carol.offset(path) in (0, 5)  # as the line has cut it
    at = await carol.offset(path)
    done = await carol.add(path, at, b"1234567890"[at:])
    assert done.headers["repr-digest"] == digested(b"1234567890")


async def test_to_others_it_is_as_if_it_were_not_there(carol: Sender, connect: Connect) -> None:
    path = await carol.begin(10)
    dave = await connect("dave")
    missing = f"{PATH}/{global_ids.encode('Upload', 7)}"
    for method, headers in (
        ("HEAD", {}),
        ("PATCH", {**PIECE, "Upload-Offset": "0"}),
        ("DELETE", {}),
    ):
        seen = [await dave.ask(method, where, headers=headers) for where in (path, missing)]
        bogus = await dave.ask(method, f"{PATH}/nonsense", headers=headers)
        theirs, none = seen
        assert theirs.status_code == none.status_code == bogus.status_code == 404
        assert set(theirs.headers) == set(none.headers)
        assert "upload-offset" not in theirs.headers
        assert method == "HEAD" or code(theirs) == code(none) == code(bogus) == "NOT_FOUND"
        stranger = await carol.client.http.request(
            method, path, headers={"Tus-Resumable": "1.0.0", **headers}
        )
        assert stranger.status_code == 401
    assert await carol.offset(path) == 0


async def test_the_scopes_are_those_of_all_uploads(connect: Connect) -> None:
    submitter = await connect("dora", scopes=[Scope.SUBMIT])
    assert (await submitter.announce(1)).status_code == 201
    readers = ("erin", {"scopes": [Scope.MAIL_READ]}), ("fay", {"read_only": True})
    for name, more in readers:
        reader = await connect(name, **more)
        assert (await reader.announce(1)).status_code == 403
        row = await resumable_uploads.create(
            context(reader.client), resumable_uploads.Announced(5, "a/b")
        )
        path = f"{PATH}/{global_ids.encode('Upload', row.id)}"
        assert (await reader.ask("HEAD", path)).status_code == 403
        assert (await reader.add(path, 0, b"12345")).status_code == 403
        assert (await reader.ask("DELETE", path)).status_code == 403
        assert (await resumable_uploads.find(context(reader.client), row.id)).received == 0


async def test_announced_bytes_count_until_they_end(
    carol: Sender, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 100)
    monkeypatch.setattr(uploads, "MOST", 3)
    path = await carol.begin(60)
    refused = await carol.announce(41)
    assert (refused.status_code, code(refused)) == (413, "LIMIT_REACHED")
    assert (await carol.add(path, 0, bytes(60))).status_code == 204, "they were counted before"
    assert (await carol.announce(41)).status_code == 413
    await carol.begin(0)
    await carol.begin(40)
    refused = await carol.announce(0)
    assert (refused.status_code, code(refused)) == (429, "RATE_LIMITED")
    assert refused.headers["retry-after"] == str(24 * 3600)
    assert (await carol.ask("DELETE", path)).status_code == 204
    assert (await carol.announce(60)).status_code == 201
    assert files(tmp_path / "spool") == []


async def test_without_room_nothing_is_promised(
    carol: Sender, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowded = await connect(carol.client, Limits(disk_reserve=1 << 60))
    tight = await connect(carol.client, Limits(budget=1000))
    path = await carol.begin(MIB)
    for answer in (
        await crowded.announce(1),
        await crowded.add(path, 0, b"x"),
        await tight.add(path, 0, bytes(MIB)),
    ):
        assert (answer.status_code, code(answer)) == (507, "UNAVAILABLE")
    assert await carol.offset(path) == 0
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", _full)
        assert (await carol.add(path, 0, bytes(MIB))).status_code == 507
    assert await carol.offset(path) == 1000, "what the disk took"
    assert (await carol.add(path, 1000, bytes(MIB - 1000))).status_code == 204


_pwrite = os.pwrite


def _full(handle: int, data: bytes, at: int) -> int:
    if at >= 1000:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _pwrite(handle, data[: 1000 - at], at)
