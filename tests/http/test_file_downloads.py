"""Bytes over HTTP: what is sent to whom, and in which form."""

import asyncio
import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col, select
from starlette.requests import Request

from graph.app import create_app
from graph.http import byte_responses, download_urls
from graph.http.graphql_request import RequestRejected
from graph.types import global_ids
from models.errors import InvalidInput, Unauthenticated
from models.files.blobs import Blob
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.columns import select_columns
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.context import Viewer
from resolvers.files import signed_urls
from tests.conftest import Client, Clock, make_key, receive
from tests.support.clients.http_requests import get_path, signed_path
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import EDGES, FILES, RICH
from tests.support.servers.http_server import served

KEPT = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
async def message(ada: Client) -> int:
    """The rich message, in Ada's mailbox."""
    return (await receive(ada, RICH)).message_id


def code(response: httpx.Response) -> str:
    (error,) = response.json()["errors"]
    assert error["message"]
    return str(error["extensions"]["code"])


async def test_a_message_comes_byte_for_byte_as_a_file(ada: Client, message: int) -> None:
    answer = await get_path(ada, download_urls.message_source_path(message))
    assert answer.status_code == 200
    assert answer.content == RICH
    assert answer.headers["content-type"] == "message/rfc822"
    assert answer.headers["content-length"] == str(len(RICH))
    assert answer.headers["content-disposition"] == 'attachment; filename="Rich.eml"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("nth", range(len(FILES)))
async def test_an_attachment_comes_decoded(ada: Client, message: int, nth: int) -> None:
    answer = await get_path(ada, download_urls.attachment_download_path(message, nth))
    assert answer.status_code == 200
    assert answer.content == FILES[nth].content
    assert answer.headers["content-length"] == str(len(FILES[nth].content))


async def test_only_harmless_kinds_are_shown_in_the_page(ada: Client) -> None:
    kinds = {
        "image/png": "inline",
        "image/webp": "inline",
        "image/svg+xml": "attachment",
        "text/html": "attachment",
        "application/pdf": "attachment",
        "text/plain": "inline",
    }
    files = [
        multipart_message.File(
            f"Content-Type: {kind}\r\nContent-Disposition: attachment", b"x", b"x"
        )
        for kind in kinds
    ]
    key = (await receive(ada, multipart_message.raw(files))).message_id
    for nth, (kind, way) in enumerate(kinds.items()):
        answer = await get_path(ada, download_urls.attachment_download_path(key, nth))
        assert answer.headers["content-type"].partition(";")[0] == kind
        assert answer.headers["content-disposition"].partition(";")[0] == way


async def test_a_name_is_sent_in_both_forms_and_can_break_out_of_neither(
    ada: Client, message: int
) -> None:
    answer = await get_path(ada, download_urls.attachment_download_path(message, 1))
    expected = "attachment; filename=\"_bersicht.log\"; filename*=UTF-8''%C3%9Cbersicht.log"
    assert answer.headers["content-disposition"] == expected
    evil = byte_responses.content_disposition(
        "attachment", 'a"; x=\\..\\../e\u202egpj.\r\nSet-Cookie: exe'
    )
    assert evil == 'attachment; filename="a_; x=_.._.._egpj.Set-Cookie_ exe"'


@given(st.text(max_size=400))
@example("\ud800")
@example(".")
def test_any_name_makes_a_header_that_can_be_sent(name: str) -> None:
    value = byte_responses.content_disposition("attachment", name)
    assert re.fullmatch(
        r"attachment; filename=\"[ !#-\[\]-~]+\"(; filename\*=UTF-8''[!-~]+)?", value
    )
    assert len(value) < 3000


OFFSETS = st.one_of(
    st.integers(0, len(RICH) + 9),
    st.builds(lambda edge, by: max(0, edge + by), st.sampled_from(EDGES), st.integers(-200, 200)),
)


@KEPT
@given(OFFSETS, st.one_of(st.none(), OFFSETS))
@example(0, None)
@example(EDGES[0] - 1, EDGES[-1] + 1)
async def test_any_range_is_exactly_those_bytes(
    ada: Client, message: int, first: int, last: int | None
) -> None:
    asked = f"bytes={first}-{'' if last is None else last}"
    answer = await get_path(ada, download_urls.message_source_path(message), range=asked)
    if last is not None and last < first:
        assert (answer.status_code, answer.content) == (200, RICH), "no range at all"
    elif first >= len(RICH):
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{len(RICH)}"
    else:
        end = len(RICH) if last is None else min(last + 1, len(RICH))
        assert answer.status_code == 206
        assert answer.content == RICH[first:end]
        assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(RICH)}"
        assert answer.headers["content-length"] == str(end - first)


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=-4", (6, 10)),
        ("bytes=-40", (0, 10)),
        ("bytes=9-9", (9, 10)),
        ("bytes=0-" + "9" * 30, (0, 10)),
        ("Bytes= 2-3 ", (2, 4)),
        ("bytes=0-1,3-4", None),
        ("bytes=4-2", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("lines=1-2", None),
        ("", None),
    ],
)
def test_a_single_range_is_read_and_all_else_ignored(
    header: str, span: tuple[int, int] | None
) -> None:
    assert byte_responses.parse_range(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_of_nothing_is_refused(header: str) -> None:
    with pytest.raises(RequestRejected) as refused:
        byte_responses.parse_range(header, 10)
    assert refused.value.status == 416
    assert refused.value.headers == {"Content-Range": "bytes */10"}


async def test_head_tells_all_but_the_bytes(ada: Client, message: int) -> None:
    for path in (
        download_urls.message_source_path(message),
        download_urls.attachment_download_path(message, 5),
    ):
        full = await get_path(ada, path)
        head = await ada.http.head(path, headers={**ada.headers, "Range": "bytes=0-1"})
        assert (head.status_code, head.content) == (200, b"")
        changing = {"x-request-id"}
        assert {n: v for n, v in head.headers.items() if n not in changing} == {
            n: v for n, v in full.headers.items() if n not in changing
        }


async def test_what_is_known_already_is_not_sent_again(ada: Client, message: int) -> None:
    path = download_urls.attachment_download_path(message, 0)
    tag = (await get_path(ada, path)).headers["etag"]
    assert re.fullmatch('"[0-9a-f]{64}"', tag)
    for known in (tag, f'"other", W/{tag}', "*"):
        answer = await get_path(ada, path, if_none_match=known)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    assert (await get_path(ada, path, if_none_match='"other"')).status_code == 200
    assert (await get_path(ada, path, if_match=tag)).status_code == 200
    assert (await get_path(ada, path, if_match=f"W/{tag}")).status_code == 412


async def test_a_download_goes_on_only_with_the_same_bytes(ada: Client, message: int) -> None:
    path = download_urls.message_source_path(message)
    tag = (await get_path(ada, path)).headers["etag"]
    for known, status in ((tag, 206), ('"other"', 200), (f"W/{tag}", 200)):
        answer = await get_path(ada, path, range="bytes=5-9", if_range=known)
        assert answer.status_code == status


async def test_tags_differ_where_bytes_do(ada: Client, message: int) -> None:
    paths = [
        download_urls.message_source_path(message),
        *(download_urls.attachment_download_path(message, nth) for nth in range(len(FILES))),
        *(download_urls.mime_part_path(message, section) for section in ("TEXT", "1.1", "1.2")),
    ]
    tags = [(await get_path(ada, path)).headers["etag"] for path in paths]
    assert len(set(tags)) == len(tags)


async def test_parts_are_served_by_their_section(ada: Client, message: int) -> None:
    html = await get_path(ada, download_urls.mime_part_path(message, "1.2"))
    assert html.text == multipart_message.HTML.decode()
    assert html.headers["content-type"] == "text/html; charset=utf-8"
    assert html.headers["content-disposition"] == 'attachment; filename="part-1.2.html"'
    inner = await get_path(ada, download_urls.mime_part_path(message, "5.2"))
    assert inner.content == multipart_message.INNER
    whole = await get_path(ada, download_urls.mime_part_path(message, "TEXT"))
    assert RICH.endswith(whole.content)
    assert whole.headers["content-type"] == "application/octet-stream", "no live multipart"
    assert (await get_path(ada, download_urls.mime_part_path(message, "77"))).status_code == 404


def paths(key: int) -> list[str]:
    return [
        download_urls.message_source_path(key),
        download_urls.attachment_download_path(key, 0),
        download_urls.mime_part_path(key, "1.1"),
    ]


async def test_anothers_message_looks_like_one_that_never_was(
    ada: Client, bob: Client, message: int
) -> None:
    for mine, never in zip(paths(message), paths(message + 1), strict=True):
        theirs, unknown = await get_path(bob, mine), await get_path(bob, never)
        assert theirs.status_code == unknown.status_code == 404
        assert code(theirs) == "NOT_FOUND"
        assert theirs.content == unknown.content
        assert (await get_path(ada, mine)).status_code == 200


async def test_an_attachment_of_anothers_message_is_not_reached_through_ones_own(
    ada: Client, bob: Client, message: int
) -> None:
    own = global_ids.encode("Message", (await receive(bob, RICH)).message_id)
    there = download_urls.attachment_id(message, 0)
    answer = await get_path(bob, f"/rest/messages/{own}/attachments/{there}")
    assert answer.status_code == 404
    mine = global_ids.encode("Message", message)
    assert (await get_path(bob, f"/rest/messages/{mine}/attachments/{there}")).status_code == 404
    beyond = download_urls.attachment_download_path(message, len(FILES))
    assert (await get_path(ada, beyond)).status_code == 404


@pytest.mark.parametrize("made_up", ["msg_", "x", "usr_AAAAAAAAAAE", "msg_%00", "%ff", "msg_é"])
async def test_what_is_no_id_names_nothing(ada: Client, made_up: str) -> None:
    for path in (
        f"/rest/messages/{made_up}/message.eml",
        f"/rest/messages/{global_ids.encode('Message', 5)}/attachments/{made_up}",
    ):
        answer = await get_path(ada, path)
        assert (answer.status_code, code(answer)) == (404, "NOT_FOUND")


async def test_nobody_and_a_wrong_credential_are_told_to_sign_in(
    http: httpx.AsyncClient, message: int
) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        for path in paths(message):
            answer = await http.get(path, headers=headers)
            assert (answer.status_code, code(answer)) == (401, "UNAUTHENTICATED")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-request-id"]


async def test_a_credential_for_sending_does_not_read(ada: Client, message: int) -> None:
    secret = await make_key(
        ada.world, "send", user_id=ada.user.id, role=Role.USER, scopes=[Scope.SUBMIT]
    )
    sender = Client(ada.http, ada.world, ada.user, secret)
    for path in paths(message):
        answer = await get_path(sender, path)
        assert (answer.status_code, code(answer)) == (403, "FORBIDDEN")


async def test_a_signed_address_needs_no_credential_for_a_quarter_of_an_hour(
    ada: Client, message: int, clock: Clock
) -> None:
    clock.tick(seconds=1.5)
    for path in paths(message):
        address = signed_path(ada, path)
        assert (await ada.http.get(address)).status_code == 200
        assert (await ada.http.head(address)).status_code == 200
    clock.tick(minutes=15)
    answer = await ada.http.get(address)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "private, max-age=300"
    clock.tick(minutes=5)
    ended = await ada.http.get(address)
    assert (ended.status_code, code(ended)) == (401, "UNAUTHENTICATED")


async def test_an_address_stays_the_same_for_a_while(ada: Client, clock: Clock) -> None:
    clock.tick(seconds=1)
    first = signed_path(ada, "/rest/x")
    clock.tick(minutes=4)
    assert signed_path(ada, "/rest/x") == first
    clock.tick(minutes=1)
    assert signed_path(ada, "/rest/x") != first


async def test_a_signature_opens_no_other_path_and_no_other_mailbox(
    ada: Client, bob: Client, message: int
) -> None:
    source, attachment, _ = paths(message)
    query = signed_path(ada, source).partition("?")[2]
    assert (await ada.http.get(f"{source}?{query}")).status_code == 200
    assert (await ada.http.get(f"{attachment}?{query}")).status_code == 401
    other = (await receive(ada, "Other")).message_id
    assert (
        await ada.http.get(f"{download_urls.message_source_path(other)}?{query}")
    ).status_code == 401
    # Bob's own signature is sound, but the message is none of his.
    answer = await ada.http.get(signed_path(bob, source))
    assert (answer.status_code, code(answer)) == (404, "NOT_FOUND")


@pytest.mark.parametrize("name", ["exp", "user", "sig"])
async def test_a_signed_address_that_was_changed_is_refused(
    ada: Client, bob: Client, message: int, name: str
) -> None:
    url = httpx.URL("http://test" + signed_path(ada, download_urls.message_source_path(message)))
    changes = {
        "exp": [str(int(url.params["exp"]) + 300), "0" + url.params["exp"], "-1", "²", ""],
        "user": [str(bob.user.id), "0", "9" * 30, ""],
        "sig": [url.params["sig"][:-1], url.params["sig"][:-1] + "é", "", "A" * 43],
    }
    for value in changes[name]:
        answer = await ada.http.get(url.copy_set_param(name, value))
        assert (answer.status_code, code(answer)) == (401, "UNAUTHENTICATED")
    without = await ada.http.get(url.copy_remove_param(name))
    assert without.status_code == 401


async def test_a_wrong_signature_is_not_mended_by_a_credential(ada: Client, message: int) -> None:
    answer = await get_path(ada, f"{download_urls.message_source_path(message)}?exp=9&user=9&sig=x")
    assert answer.status_code == 401


@pytest.mark.parametrize("column", ["disabled", "suspended"])
async def test_addresses_end_with_the_account(ada: Client, message: int, column: str) -> None:
    address = signed_path(ada, download_urls.message_source_path(message))
    async with ada.world.write_session() as session:
        closed = update(User).where(col(User.id) == ada.user.id).values({column: True})
        await session.exec(closed)
    assert (await ada.http.get(address)).status_code == 401


def test_an_address_is_absolute_where_we_are_reached() -> None:
    here: Any = SimpleNamespace(options=Options())
    there: Any = SimpleNamespace(options=Options(public_url="https://mail.example.org/m/"))
    assert signed_urls.absolute_url(here, "/rest/x", "http://test:80/") == "http://test:80/rest/x"
    assert (
        signed_urls.absolute_url(there, "/rest/x", "http://test")
        == "https://mail.example.org/m/rest/x"
    )


@given(st.integers(1, 2**63 - 1), st.integers(0, download_urls.MAX_ATTACHMENTS - 1))
def test_the_id_of_an_attachment_leads_back_to_it(key: int, index: int) -> None:
    assert download_urls.parse_attachment_id(download_urls.attachment_id(key, index)) == (
        key,
        index,
    )


@given(st.text(max_size=40).map(lambda text: f"att_{text}"))
@example("att_" + "A" * 14)
@example(str(download_urls.attachment_id(5, 1)) + "==")
@example(str(global_ids.encode("Attachment", 5)))
@example("att_AAAAAAAAAAUAAB")
def test_what_we_did_not_write_is_no_id_of_an_attachment(text: str) -> None:
    with pytest.raises(InvalidInput):
        download_urls.parse_attachment_id(text)


async def test_a_damaged_message_is_our_mistake_and_says_no_more(
    ada: Client, message: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with ada.world.write_session() as session:
        root = select(Message.blob_id).where(col(Message.id) == message).scalar_subquery()
        await session.exec(update(Blob).where(col(Blob.id) == root).values(data=b"spoilt"))
    answer = await get_path(ada, download_urls.message_source_path(message))
    assert (answer.status_code, code(answer)) == (500, "DAMAGED")
    error = answer.json()["errors"][0]["extensions"]
    assert error["requestId"] == answer.headers["x-request-id"]
    assert error["requestId"] in [getattr(r, "request_id", "") for r in caplog.records]
    assert "spoilt" not in json.dumps(answer.json())


async def test_a_download_of_damaged_bytes_is_refused_before_it_begins(
    world: Environment, ada: Client, message: int, tmp_path: Path
) -> None:
    asked = select(*select_columns(Blob, ("name",))).where(col(Blob.size) == len(FILES[0].content))
    ((name,),) = await world.database.read(asked)
    content = bytearray(await world.object_store.get(name))
    content[-1] ^= 1
    await world.object_store.put(name, bytes(content))
    async with (
        served(create_app(world, spool_folder=tmp_path)) as port,
        httpx.AsyncClient(timeout=30) as http,
    ):
        url = f"http://127.0.0.1:{port}{download_urls.attachment_download_path(message, 0)}"
        refused = await http.get(url, headers=ada.headers)
        assert (refused.status_code, code(refused)) == (500, "DAMAGED")
        sound = f"http://127.0.0.1:{port}{download_urls.mime_part_path(message, '1.1')}"
        intact = await http.get(sound, headers=ada.headers)
        assert intact.text == multipart_message.TEXT


async def test_a_stream_whose_client_has_gone_is_closed() -> None:
    """As uvicorn does it: the sending is cancelled."""
    closed = asyncio.Event()

    async def endless(_start: int, _end: int) -> Any:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            closed.set()

    async def opened() -> byte_responses.FileBytes:
        return byte_responses.FileBytes(1 << 40, endless, intact)

    async def intact(_start: int, _end: int) -> None: ...

    async def vanish() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        return None

    scope = {"type": "http", "method": "GET", "headers": [], "path": "/"}
    served = byte_responses.ServedFile("tag", "text/plain", "x", opened)
    response = await byte_responses.serve_file(Request(scope), served)
    await response(scope, vanish, send)
    assert closed.is_set()


def test_the_signature_of_one_world_means_nothing_in_another(world: Environment) -> None:
    address = signed_urls.sign_path(world, "/rest/x", 7, Viewer(7, auth_version=1), now=world.now())
    query = dict(httpx.URL(address).params)
    assert signed_urls.verify_signed_path(world, "/rest/x", query) == 7
    with pytest.raises(Unauthenticated):
        signed_urls.verify_signed_path(replace(world, signing_secret=b"t" * 32), "/rest/x", query)
    with pytest.raises(Unauthenticated):
        signed_urls.verify_signed_path(world, "/rest/x\n7", query)
    later = world.now() + timedelta(minutes=21)
    with pytest.raises(Unauthenticated):
        signed_urls.verify_signed_path(replace(world, now=lambda: later), "/rest/x", query)
