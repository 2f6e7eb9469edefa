"""Hostile messages by LMTP: they are accepted, stored byte for byte, and readable."""

import hashlib

from sqlalchemy import select
from sqlmodel import col

from bench.load.lmtp_client import dot_stuff
from graph.types import global_ids
from mail.smtp.lmtp import LmtpListener
from models.messages.tables import Message
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.mail.hostile_message_parts import message_with_attachment
from tests.support.mail.hostile_messages import hostile_messages
from tests.support.mail.trace_header_lines import without_trace_fields
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.stores.counter_check import assert_store_consistent

HOSTILE_MESSAGES = hostile_messages()
MESSAGE_QUERY = """query ($id: ID!) { node(id: $id) { ... on Message {
  subject preview date messageIdHeader inReplyTo references size sourceUrl body text html
  from { name address } sender { name address } to { name address } cc { name address }
  replyTo { name address } mailingList { listId unsubscribeUrl } headers { name value } rawHeader
  imap { bodyStructure envelope } mimeStructure { section contentType { value params } }
  calendarEvents { summary } attachments { filename contentType disposition size text } } } }"""


async def deliver_message(lmtp_client: SmtpTestClient, raw: bytes, to: str) -> str:
    await lmtp_client.start_data(to)
    lmtp_client.send_bytes(dot_stuff(raw))
    return await lmtp_client.read_reply()


def test_hostile_messages_are_many_and_distinct() -> None:
    assert len(HOSTILE_MESSAGES) > 300
    assert len(set(HOSTILE_MESSAGES.values())) > 300


async def test_hostile_messages_are_accepted_stored_and_readable(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, environment: Environment
) -> None:
    replies = {
        name: await deliver_message(lmtp_client, raw, ada.address)
        for name, raw in HOSTILE_MESSAGES.items()
    }
    assert {name: reply for name, reply in replies.items() if not reply.startswith("250")} == {}
    names_by_digest = {
        hashlib.sha256(raw).hexdigest(): name for name, raw in HOSTILE_MESSAGES.items()
    }
    rows = await environment.database.read(select(col(Message.id)))
    assert len(rows) == len(names_by_digest)  # a repeated message is stored once
    for row in rows:
        message = (await ada(MESSAGE_QUERY, id=global_ids.encode("Message", row.id)))["node"]
        source = await ada.http.get(message["sourceUrl"])
        assert message["size"] == len(source.content)
        name = names_by_digest.pop(hashlib.sha256(without_trace_fields(source.content)).hexdigest())
        assert "<script" not in (message["html"] or ""), name
    assert names_by_digest == {}
    await assert_store_consistent(environment)


async def test_large_message_leaves_no_spool_file(
    ada: GraphQLClient,
    lmtp_listener: LmtpListener,
    lmtp_client: SmtpTestClient,
    environment: Environment,
) -> None:
    content = hashlib.shake_128(b"large").digest(3_000_000)
    for raw in (
        message_with_attachment(b"x.bin", content),
        message_with_attachment(b"y.bin", bytes(3_000_000)),
    ):
        assert (await deliver_message(lmtp_client, raw, ada.address)).startswith("250")
    assert list(lmtp_listener.spool_folder.iterdir()) == []
    await assert_store_consistent(environment)
