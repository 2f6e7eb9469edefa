"""Letters that were made to hurt come in, are stored byte for byte, and can be read."""

import hashlib

from sqlalchemy import select
from sqlmodel import col

from bench.load.lmtp_client import dot_stuff
from graph.types import global_ids
from mail.smtp.lmtp import LmtpListener
from models.messages.tables import Message
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.mail.hostile_messages import attached, letters
from tests.support.mail.trace_header_lines import below
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.stores.counter_check import examine

LETTERS = letters()
READ = """query ($id: ID!) { node(id: $id) { ... on Message {
  subject intro date messageId inReplyTo references size sourceUrl body text html
  from { name address } sender { name address } to { name address } cc { name address }
  replyTo { name address } list { listId unsubscribeUrl } headers { key value } headersText
  bodyStructureImap envelopeImap structure { section contentType { value params } }
  events { summary } attachments { filename contentType disposition size text } } } }"""


async def say(neighbour: Neighbour, raw: bytes, to: str) -> str:
    await neighbour.begin(to)
    neighbour.send(dot_stuff(raw))
    return await neighbour.hear()


def test_there_are_enough_and_all_differ() -> None:
    assert len(LETTERS) > 300
    assert len(set(LETTERS.values())) > 300


async def test_all_are_taken_stored_as_they_came_and_can_be_read(
    ada: Client, neighbour: Neighbour, world: Environment
) -> None:
    replies = {name: await say(neighbour, raw, ada.address) for name, raw in LETTERS.items()}
    assert {name: reply for name, reply in replies.items() if not reply.startswith("250")} == {}
    sent = {hashlib.sha256(raw).hexdigest(): name for name, raw in LETTERS.items()}
    rows = await world.database.read(select(col(Message.id)))
    assert len(rows) == len(sent)  # the same letter again is known
    for row in rows:
        found = (await ada(READ, id=global_ids.encode("Message", row.id)))["node"]
        source = await ada.http.get(found["sourceUrl"])
        assert found["size"] == len(source.content)
        name = sent.pop(hashlib.sha256(below(source.content)).hexdigest())
        assert "<script" not in "".join(found["html"]), name
    assert sent == {}
    await examine(world)


async def test_a_large_letter_leaves_nothing_in_the_spool(
    ada: Client, listener: LmtpListener, neighbour: Neighbour, world: Environment
) -> None:
    content = hashlib.shake_128(b"large").digest(3_000_000)
    for raw in (attached(b"x.bin", content), attached(b"y.bin", bytes(3_000_000))):
        assert (await say(neighbour, raw, ada.address)).startswith("250")
    assert list(listener.spool_folder.iterdir()) == []
    await examine(world)
