"""What messages are written from: files that are there already, and other messages' files."""

import base64
from typing import Any

import pytest

from graph.http import download_urls
from graph.types import global_ids
from models.users.roles import Role, Scope
from tests.conftest import Client, make_key, receive
from tests.support.mail.multipart_message import FILES, RICH
from tests.support.operations.message_sources import files, put, source

SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  message { id } errors { __typename code path index } } }
"""
LETTER = {"to": [{"address": "carol@example.net"}], "subject": "Hi", "text": "Yo"}


async def sent(client: Client, **given: Any) -> Any:
    return (await client(SEND, input={**LETTER, **given}))["messageSend"]


async def original(client: Client) -> str:
    return global_ids.encode("Message", (await receive(client, RICH)).message_id)


def attachment(message: str, nth: int) -> str:
    return download_urls.attachment_id(global_ids.decode("Message", message), nth)


async def test_an_upload_is_attached_under_its_name_or_another(ada: Client) -> None:
    key = await put(
        ada, b"\x89PNG", content_type="image/png",
        content_disposition="attachment; filename*=UTF-8''n%C3%BC.png",
    )  # fmt: skip
    other = {"upload": key, "filename": "x.bin", "contentType": "image/x-odd", "cid": "a@b"}
    plain = {"content": base64.b64encode(b"text").decode(), "filename": "a.txt"}
    assert await files(ada, await sent(ada, attachments=[{"upload": key}, plain, other])) == [
        ("nü.png", "image/png", None, b"\x89PNG"),
        ("a.txt", "application/octet-stream", None, b"text"),
        ("x.bin", "image/x-odd", "<a@b>", b"\x89PNG"),
    ]


async def test_a_file_has_its_bytes_from_one_place(ada: Client, bob: Client) -> None:
    theirs = await put(bob, b"secret")
    for file, code, path in (
        ({}, "VALIDATION", ["attachments", "0"]),
        ({"content": "", "upload": theirs}, "VALIDATION", ["attachments", "0"]),
        ({"upload": "x"}, "VALIDATION", ["attachments", "0", "upload"]),
        ({"upload": theirs}, "NOT_FOUND", ["attachments", "0", "upload"]),
    ):
        (error,) = (await sent(ada, attachments=[file]))["errors"]
        assert (error["code"], error["path"], error["index"]) == (code, path, 0)


async def test_a_forward_takes_the_files_along(ada: Client) -> None:
    key = await original(ada)
    reference = {"message": {"id": key}, "action": "FORWARD", "attachments": {"all": True}}
    forward = await sent(ada, reference=reference)
    assert [content for *_, content in await files(ada, forward)] == [f.content for f in FILES]
    raw = await source(ada, forward["message"]["id"])
    assert 'Content-Type: text/markdown; charset="utf-8"' in raw
    chosen = {"ids": [attachment(key, 4), attachment(key, 0)]}
    reference = {"message": {"id": key}, "action": "REPLY", "attachments": chosen}
    own = {"content": base64.b64encode(b"own").decode(), "filename": "own.txt"}
    some = await files(ada, await sent(ada, reference=reference, attachments=[own]))
    assert [name for name, *_ in some] == ["own.txt", "photo.png", "large.pdf"]
    assert some[1][2] == "<photo@here>"


@pytest.mark.parametrize("nth", [99, 65535])
async def test_only_files_of_that_message_are_taken(ada: Client, bob: Client, nth: int) -> None:
    key, theirs = await original(ada), await original(bob)
    for message, files_, path in (
        (key, {"ids": [attachment(key, 0), attachment(key, nth)]}, ["reference", "attachments"]),
        (key, {"ids": [attachment(key, 0), attachment(theirs, 0)]}, ["reference", "attachments"]),
        (theirs, {"all": True}, ["reference", "message"]),
    ):
        reference = {"message": {"id": message}, "action": "FORWARD", "attachments": files_}
        (error,) = (await sent(ada, reference=reference))["errors"]
        assert error["code"] == "NOT_FOUND"
        assert error["path"][:2] == path
    reference = {"message": {"id": key}, "action": "FORWARD", "attachments": {"ids": ["x"]}}
    (error,) = (await sent(ada, reference=reference))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["reference", "attachments", "ids"])


async def test_who_may_only_send_takes_no_files_of_others_mail_along(ada: Client) -> None:
    key = await original(ada)
    secret = await make_key(
        ada.world, "sender", user_id=ada.user.id, role=Role.USER, scopes=[Scope.SUBMIT]
    )
    sender = Client(ada.http, ada.world, ada.user, secret)
    reference = {"message": {"id": key}, "action": "FORWARD", "attachments": {"all": True}}
    document = SEND.replace("message { id }", "submission { id }")
    given = {**LETTER, "reference": reference}
    (error,) = (await sender(document, input=given))["messageSend"]["errors"]
    assert error["code"] == "FORBIDDEN"
