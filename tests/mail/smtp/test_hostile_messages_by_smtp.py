"""Letters that were made to hurt, by SMTP: from strangers, and handed in by a user of ours."""

import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from bench.load.lmtp_client import dot_stuff
from graph.types import global_ids
from mail.queue import message_body
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener as Listener
from mail.tls.server_tls import CertificateFiles
from models.messages.tables import Message
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import Client, make_user
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.hostile_messages import letters
from tests.support.mail.smuggled_messages import FALSE_END_SEQUENCES, SMUGGLED_TRANSACTION
from tests.support.mail.trace_header_lines import bare, below
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import relay, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.mail_servers.smtp_client import Authority, connect, secured
from tests.support.mail_servers.submission_client import PASSWORD, sign_in_by_auth_plain
from tests.support.run_scope import ALL
from tests.support.stores.counter_check import examine

LETTERS = letters()
# The same code stores them as those of LMTP, where `test_torture` takes all.
STRANGERS = LETTERS if ALL else dict(list(LETTERS.items())[::3])
SOURCE = "query ($id: ID!) { node(id: $id) { ... on Message { sourceUrl } } }"
OURS = re.compile(
    rb"Authentication-Results: mx\.example\.org;(?:\r\n [^\r\n]+)*\r\n"
    rb"Received: from mx\.example\.net \(\[127\.0\.0\.1]\)(?:\r\n\t[^\r\n]+){2}\r\n"
)
FROM = re.compile(rb"\A(From: [^\r\n]*?)carol@example\.com")
REFUSALS = (
    "550 5.7.1 you may not send as ",
    "554 5.6.0 From names nobody",
    "554 5.6.0 a message has no NUL bytes",
    "554 5.6.0 a message has one field From, and one Sender at most",
    "554 5.6.0 its header is none, or too long",
    "554 5.6.0 not a domain name",
    "554 5.6.0 not a mail address",
)
LINE_END = re.compile(rb"\r\n|\r|\n")


@pytest.fixture
async def mx(world: Environment, tmp_path: Path) -> AsyncIterator[Neighbour]:
    """A connection with a listener that takes any number."""
    listener = MxListener(
        world,
        tmp_path / "spool",
        SmtpListenerConfig(),
        MxRules(network_hourly=0, network_hourly_per_account=0),
    )
    await listener.start(host="127.0.0.1", port=0)
    neighbour = await connect(listener.port)
    yield neighbour
    await neighbour.close()
    await listener.close(5)
    assert list(listener.spool_folder.iterdir()) == []
    assert listener.byte_budget.used == 0


@pytest.fixture
async def submission(world: Environment, tmp_path: Path) -> AsyncIterator[Neighbour]:
    """A connection over which ada has signed in."""
    await make_user(world, "ada", password=PASSWORD, recipients=100_000)
    authority = Authority(tmp_path)
    terms = SmtpListenerConfig(certificates=CertificateFiles(authority.issue()))
    listener = Listener(world, tmp_path / "spool", terms, SmtpSubmissionService(world))
    await listener.start(host="127.0.0.1", port=0)
    neighbour = await connect(listener.port)
    await secured(neighbour, authority.client())
    await sign_in_by_auth_plain(neighbour)
    yield neighbour
    await neighbour.close()
    await listener.close(5)
    assert list(listener.spool_folder.iterdir()) == []
    assert listener.byte_budget.used == 0


async def say(client: Neighbour, raw: bytes, sender: str, to: str) -> str:
    """Send it with its whole envelope at once."""
    envelope = f"MAIL FROM:<{sender}>\r\nRCPT TO:<{to}>\r\nDATA\r\n"
    client.send(envelope.encode() + dot_stuff(raw))
    assert [(await client.hear())[:3] for _ in range(3)] == ["250", "250", "354"]
    return await client.hear()


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


async def test_strangers_letters_are_all_taken_and_stored_as_they_came(
    ada: Client, mx: Neighbour, world: Environment
) -> None:
    sender = "carol@example.com"
    replies = {name: await say(mx, raw, sender, ada.address) for name, raw in STRANGERS.items()}
    assert {name: said for name, said in replies.items() if not said.startswith("250")} == {}
    assert await mx.say("NOOP") == "250 2.0.0 Fine"
    sent = {digest(raw): name for name, raw in STRANGERS.items()}
    rows = await world.database.read(select(col(Message.id)))
    assert len(rows) == len(sent)  # the same letter again is known
    for row in rows:
        found = (await ada(SOURCE, id=global_ids.encode("Message", row.id)))["node"]
        stored = below((await ada.http.get(found["sourceUrl"])).content)
        ours = OURS.match(stored)
        assert ours
        assert sent.pop(digest(bare(stored[ours.end() :])), None), stored[:500]
    assert sent == {}
    await examine(world)


def handed_in(raw: bytes) -> bytes:
    """The letter as one of ada's."""
    return FROM.sub(rb"\1ada@example.org", raw, count=1)


async def queued(world: Environment) -> dict[str, bytes]:
    """The messages of the queue, by their ids there."""
    columns = col(Submission.id), col(Submission.blob_id), col(Submission.queue_id)
    found = {}
    for row in await world.database.read(select(*columns)):
        job: Any = SimpleNamespace(submission_id=row.id, blob_id=row.blob_id)
        found[str(row.queue_id)] = await message_body.read_message(world, job)
    return found


async def test_of_letters_that_are_handed_in_each_is_queued_whole_or_refused(
    submission: Neighbour, world: Environment
) -> None:
    """Lines end in CRLF then, and the header may be put right; the body is as it was."""
    said = {}
    for name, raw in LETTERS.items():
        reply = await say(submission, handed_in(raw), "ada@example.org", "carol@example.net")
        assert reply.startswith(("250 2.0.0 Queued as ", *REFUSALS)), name
        said[name] = reply
    assert await submission.say("NOOP") == "250 2.0.0 Fine"
    there = await queued(world)
    taken = {name: reply.rpartition(" ")[2] for name, reply in said.items() if reply[0] == "2"}
    assert sorted(there) == sorted(taken.values())
    assert len(taken) > 300
    for name, key in taken.items():
        raw = LINE_END.sub(b"\r\n", handed_in(LETTERS[name]))
        assert there[key].partition(b"\r\n\r\n")[2] == raw.partition(b"\r\n\r\n")[2], name
        assert there[key].startswith(b"Received: by mx.example.org with ESMTPSA")
    await examine(world)


async def one_each(world: Environment, many: int, to: str) -> None:
    """So many messages come to a server elsewhere, and nobody could read more in them."""
    async with listening(Server()) as there, working(world, relay(there)):

        async def come() -> bool:
            return len(there.mails) >= many

        await until(come)
        states = select(col(QueueEntry.state)).distinct()

        async def done() -> bool:
            return [row.state for row in await world.database.read(states)] == ["RELAYED"]

        await until(done)
    assert len(there.mails) == many
    for mail in there.mails:
        assert mail.to == [to]
        assert b"Forged" in mail.raw
        assert not re.search(rb"\0|(?<!\r)\n|\r(?!\n)", mail.raw)


async def test_what_is_sent_on_is_one_message(
    ada: Client, mx: Neighbour, world: Environment
) -> None:
    await add_forwarding_address(world, "list", "dave@far.example")
    for end in FALSE_END_SEQUENCES:
        raw = b"Subject: x\r\n\r\nHello" + end + SMUGGLED_TRANSACTION
        mx.send(b"MAIL FROM:<carol@example.net>\r\nRCPT TO:<list@example.org>\r\nDATA\r\n")
        assert [(await mx.hear())[:3] for _ in range(3)] == ["250", "250", "354"]
        mx.send(raw + b".\r\n")
        assert (await mx.hear()).startswith("250 2.0.0"), end
    await one_each(ada.world, len(FALSE_END_SEQUENCES), "dave@far.example")


async def test_what_is_handed_in_is_one_message(submission: Neighbour, world: Environment) -> None:
    taken = 0
    for end in FALSE_END_SEQUENCES:
        raw = b"From: ada@example.org\r\n\r\nHello" + end + SMUGGLED_TRANSACTION
        await submission.begin("dave@far.example", sender="ada@example.org")
        submission.send(raw + b".\r\n")
        reply = await submission.hear()
        assert reply.startswith("554 5.6.0" if b"\0" in end else "250 2.0.0"), end
        taken += reply.startswith("250")
    await one_each(world, taken, "dave@far.example")
