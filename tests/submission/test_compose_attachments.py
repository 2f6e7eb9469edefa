"""Test attachments of new messages: uploads, inline content and files of other messages."""

import base64
from typing import Any

import pytest

from graph.http import download_urls
from graph.types import global_ids
from models.users.roles import Role, Scope
from tests.conftest import GraphQLClient, deliver_to, make_api_key
from tests.support.mail.multipart_message import ATTACHMENTS, MULTIPART_MESSAGE
from tests.support.operations.message_sources import (
    load_attached_files,
    load_message_source,
    upload_bytes,
)

MESSAGE_SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  messages { id } errors { __typename code path } } }
"""
SEND_INPUT = {"to": [{"address": "carol@example.net"}], "subject": "Hi", "text": "Yo"}


async def send_message(client: GraphQLClient, **fields: Any) -> Any:
    """Send one message and return the payload, with the copy as `message`."""
    payload = (await client(MESSAGE_SEND, input={**SEND_INPUT, **fields}))["messageSend"]
    return {**payload, "message": next(iter(payload["messages"]), None)}


async def receive_rich_message(client: GraphQLClient) -> str:
    return global_ids.encode("Message", (await deliver_to(client, MULTIPART_MESSAGE)).message_id)


def attachment_id(message: str, nth: int) -> str:
    return download_urls.attachment_id(global_ids.decode("Message", message), nth)


async def test_upload_is_attached_with_own_or_given_filename(ada: GraphQLClient) -> None:
    upload_id = await upload_bytes(
        ada, b"\x89PNG", content_type="image/png",
        content_disposition="attachment; filename*=UTF-8''n%C3%BC.png",
    )  # fmt: skip
    renamed = {
        "upload": upload_id,
        "filename": "x.bin",
        "contentType": "image/x-odd",
        "contentId": "a@b",
    }
    inline_content = {"content": base64.b64encode(b"text").decode(), "filename": "a.txt"}
    assert await load_attached_files(
        ada, await send_message(ada, attachments=[{"upload": upload_id}, inline_content, renamed])
    ) == [
        ("nü.png", "image/png", None, b"\x89PNG"),
        ("a.txt", "application/octet-stream", None, b"text"),
        ("x.bin", "image/x-odd", "<a@b>", b"\x89PNG"),
    ]


async def test_attachment_needs_exactly_one_valid_source(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    foreign_upload = await upload_bytes(bob, b"secret")
    for file, code, path in (
        ({}, "VALIDATION", ["attachments", "0"]),
        ({"content": "", "upload": foreign_upload}, "VALIDATION", ["attachments", "0"]),
        ({"upload": "x"}, "VALIDATION", ["attachments", "0", "upload"]),
        ({"upload": foreign_upload}, "NOT_FOUND", ["attachments", "0", "upload"]),
    ):
        (error,) = (await send_message(ada, attachments=[file]))["errors"]
        assert (error["code"], error["path"]) == (code, path)


async def test_forward_includes_attachments_of_original(ada: GraphQLClient) -> None:
    message_id = await receive_rich_message(ada)
    reference = {"message": {"id": message_id}, "relation": "FORWARD", "attachments": {"all": True}}
    forward = await send_message(ada, original=reference)
    assert [content for *_, content in await load_attached_files(ada, forward)] == [
        file.content for file in ATTACHMENTS
    ]
    raw = await load_message_source(ada, forward["message"]["id"])
    assert 'Content-Type: text/markdown; charset="utf-8"' in raw
    selection = {
        "selected": [{"id": attachment_id(message_id, 4)}, {"id": attachment_id(message_id, 0)}]
    }
    reference = {"message": {"id": message_id}, "relation": "REPLY", "attachments": selection}
    new_file = {"content": base64.b64encode(b"own").decode(), "filename": "own.txt"}
    attached_files = await load_attached_files(
        ada, await send_message(ada, original=reference, attachments=[new_file])
    )
    assert [name for name, *_ in attached_files] == ["own.txt", "photo.png", "large.pdf"]
    assert attached_files[1][2] == "<photo@here>"


@pytest.mark.parametrize("nth", [99, 65535])
async def test_foreign_or_unknown_attachment_is_not_found(
    ada: GraphQLClient, bob: GraphQLClient, nth: int
) -> None:
    own_message, foreign_message = await receive_rich_message(ada), await receive_rich_message(bob)
    for message, selection, path in (
        (
            own_message,
            {
                "selected": [
                    {"id": attachment_id(own_message, 0)},
                    {"id": attachment_id(own_message, nth)},
                ]
            },
            ["original", "attachments"],
        ),
        (
            own_message,
            {
                "selected": [
                    {"id": attachment_id(own_message, 0)},
                    {"id": attachment_id(foreign_message, 0)},
                ]
            },
            ["original", "attachments"],
        ),
        (foreign_message, {"all": True}, ["original", "message"]),
    ):
        reference = {"message": {"id": message}, "relation": "FORWARD", "attachments": selection}
        (error,) = (await send_message(ada, original=reference))["errors"]
        assert error["code"] == "NOT_FOUND"
        assert error["path"][:2] == path
    reference = {
        "message": {"id": own_message},
        "relation": "FORWARD",
        "attachments": {"selected": [{"id": "x"}]},
    }
    (error,) = (await send_message(ada, original=reference))["errors"]
    assert (error["code"], error["path"]) == (
        "VALIDATION",
        ["original", "attachments", "selected", "0", "id"],
    )


async def test_submit_only_key_cannot_attach_files_of_messages(ada: GraphQLClient) -> None:
    message_id = await receive_rich_message(ada)
    secret = await make_api_key(
        ada.environment, "sender", user_id=ada.user.id, role=Role.USER, scopes=[Scope.SUBMIT]
    )
    sender = GraphQLClient(ada.http, ada.environment, ada.user, secret)
    reference = {"message": {"id": message_id}, "relation": "FORWARD", "attachments": {"all": True}}
    document = MESSAGE_SEND.replace("messages { id }", "submissions { id }")
    arguments = {**SEND_INPUT, "original": reference}
    (error,) = (await sender(document, input=arguments))["messageSend"]["errors"]
    assert error["code"] == "FORBIDDEN"
