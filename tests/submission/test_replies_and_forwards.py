"""Replies and forwards of stored messages."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.mime.header_encoding import NamedAddress
from models.errors import (
    RequestError,
)
from models.messages.tables import Message, MessageRelationKind
from models.store.columns import ColumnRow, select_columns
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from resolvers.submission.message_source import MessageSource
from tests.conftest import GraphQLClient, client_context, deliver_to, raw_message
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.send_operations import (
    OUTSIDE_RECIPIENT,
    send_outgoing_message,
)


async def load_message(client: GraphQLClient, message_id: int) -> ColumnRow:
    query = select(*select_columns(Message)).where(col(Message.id) == message_id)
    (row,) = await client.environment.database.read(query)
    return row


def pair_addresses(pairs: Sequence[Sequence[str | None]]) -> list[str | None]:
    return [address for _, address in pairs]


async def receive_original(client: GraphQLClient, **headers: str) -> int:
    return (await deliver_to(client, raw_message("Plans", **headers))).message_id


async def send_reply(
    client: GraphQLClient, message_id: int, action: MessageRelationKind, **extra: Any
) -> ColumnRow:
    outgoing = SendRequest(source=MessageSource(message_id, action), text="Yes.", **extra)
    sent = await submission_create.compose_and_queue_message(client_context(client), outgoing)
    assert sent.message is not None
    return sent.message


async def test_reply_goes_to_sender_and_marks_original(ada: GraphQLClient) -> None:
    message_id = await receive_original(ada, References="<0@example.com>")
    first = await load_message(ada, message_id)
    reply = await send_reply(ada, message_id, MessageRelationKind.REPLY)
    assert (reply.subject, reply.to) == ("Re: Plans", [["Carol", "carol@example.com"]])
    assert reply.in_reply_to == first.message_id
    assert reply.references == ["<0@example.com>", first.message_id]
    assert reply.thread_id == first.thread_id
    current = await load_message(ada, message_id)
    assert (current.answered, current.keywords, current.modseq > first.modseq) == (True, [], True)


async def test_reply_all_excludes_own_addresses(ada: GraphQLClient) -> None:
    message_id = await receive_original(
        ada,
        Reply_To="list@example.com",
        To="Ada <A.da+x@example.org>, bob@example.org, LIST@example.com",
        Cc="dora@example.com, bob@example.org",
    )
    reply = await send_reply(ada, message_id, MessageRelationKind.REPLY_ALL, subject="Mine")
    assert pair_addresses(reply.to) == ["list@example.com", "bob@example.org"]
    assert pair_addresses(reply.cc) == ["dora@example.com"]
    assert reply.subject == "Mine"


async def test_reply_to_own_message_goes_to_its_recipients(ada: GraphQLClient) -> None:
    sent = (await send_outgoing_message(ada)).message
    assert sent is not None
    reply = await send_reply(ada, sent.id, MessageRelationKind.REPLY)
    assert pair_addresses(reply.to) == ["carol@example.net"]


async def test_forward_prefixes_subject_and_sets_keyword(ada: GraphQLClient) -> None:
    message_id = await receive_original(ada)
    forward = await send_reply(ada, message_id, MessageRelationKind.FORWARD, to=[OUTSIDE_RECIPIENT])
    assert (forward.subject, forward.in_reply_to) == ("Fwd: Plans", None)
    current = await load_message(ada, message_id)
    assert (current.answered, current.keywords) == (True, ["$Forwarded"])


async def test_reply_prefix_is_not_repeated(ada: GraphQLClient) -> None:
    message_id = (await deliver_to(ada, raw_message("AW: Plans"))).message_id
    assert (await send_reply(ada, message_id, MessageRelationKind.REPLY)).subject == "AW: Plans"


async def test_failed_reply_does_not_mark_original(ada: GraphQLClient, bob: GraphQLClient) -> None:
    message_id = await receive_original(ada)
    for client, extra in (
        (ada, {"from_": NamedAddress(bob.address)}),
        (bob, {"to": [OUTSIDE_RECIPIENT]}),
    ):
        with pytest.raises(RequestError):
            await send_reply(client, message_id, MessageRelationKind.REPLY, **extra)
    assert not (await load_message(ada, message_id)).answered


async def test_null_recipients_of_a_reply_have_the_default(ada: GraphQLClient) -> None:
    message_id = global_ids.encode("Message", await receive_original(ada, Cc="dan@example.net"))
    original = {"message": {"id": message_id}, "relation": "REPLY_ALL"}
    fields = "messages { to { address } cc { address } }"
    answer = await execute_mutation(
        ada, "messageSend", fields, original=original, text="Yes.", to=None, cc=None
    )
    assert answer["messages"] == [
        {"to": [{"address": "carol@example.com"}], "cc": [{"address": "dan@example.net"}]}
    ]
