"""Accounts made row by row, and mail delivered to them: for tests of the engine below resolvers."""

import base64
import random
from dataclasses import dataclass

from mail.envelope.local_recipient import LocalRecipient
from mail.storage import message_insert, received_messages
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.events.journal import Stream
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import Environment
from models.users.tables import User


@dataclass(frozen=True)
class Home:
    """An account of example.org with two folders."""

    world: Environment
    user_id: int
    domain_id: int
    inbox: int
    notes: int
    address: str

    async def receive(self, raw: bytes) -> message_insert.InsertedMessage:
        """Deliver a message, as if it came by LMTP."""
        letter = await received_messages.read_message(raw)
        to = LocalRecipient(self.user_id, self.domain_id, self.inbox, 0, self.address)
        return await received_messages.store_for_recipient(
            self.world, letter, to, "carol@example.com"
        )

    async def keep(self, retention: int, *, folder: int | None = None) -> None:
        """Let new messages in a folder live so many seconds."""
        async with self.world.write_session(self.user_id) as session:
            box = await session.get_one(Mailbox, folder or self.inbox)
            box.retention = retention


async def domain_of(world: Environment, name: str = "example.org") -> Domain:
    """A domain without users."""
    now = world.now()
    domain = Domain(id=world.new_id(), name=name, created_at=now, updated_at=now)
    async with world.write_session() as session:
        session.add_all([domain, Stream(id=domain.id)])
    return domain


async def home_of(world: Environment, domain: Domain, name: str) -> Home:
    """An account with an address, INBOX and Notes, counted in its domain."""
    now, key, address = world.now(), world.new_id(), f"{name}@{domain.name}"
    inbox, notes = world.new_id(), world.new_id()
    async with world.write_session(domain.id) as session:
        there = await session.get_one(Domain, domain.id)
        there.user_count += 1
        there.address_count += 1
        there.quota_allocated += world.options.default_quota
        session.add_all([there, Stream(id=key)])
        user = User(
            id=key,
            username=name,
            username_key=name,
            domain_id=domain.id,
            tenant_id=domain.id,
            uid_validity=2**31,
            created_at=now,
            updated_at=now,
        )
        session.add(user)
        await session.flush()
        for box, path, use in ((inbox, "INBOX", SpecialUse.INBOX), (notes, "Notes", None)):
            session.add(
                Mailbox(
                    id=box,
                    user_id=key,
                    path=path,
                    guid=f"{box:032x}",
                    special_use=use,
                    uid_validity=box % 2**31,
                    created_at=now,
                )
            )
        session.add(
            Address(
                id=world.new_id(),
                local=name,
                domain_id=domain.id,
                shown=address,
                user_id=key,
                main=True,
                created_at=now,
                updated_at=now,
            )
        )
    return Home(world, key, domain.id, inbox, notes, address)


def letter(subject: str, *, answers: str | None = None, attached: int = 0, to: str = "x") -> bytes:
    """A message named by its subject; with `attached` random bytes as an attachment."""
    head = [
        "From: Carol <carol@example.com>",
        f"To: {to}@example.org",
        f"Subject: {'Re: ' if answers else ''}{answers or subject}",
        f"Message-ID: <{subject.replace(' ', '.')}@example.com>",
        *([f"In-Reply-To: <{answers.replace(' ', '.')}@example.com>"] if answers else []),
        "MIME-Version: 1.0",
    ]
    if not attached:
        return "\r\n".join([*head, "", f"This is {subject}.", ""]).encode()
    content = random.Random(subject).randbytes(attached)  # noqa: S311 - any bytes will do
    lines = base64.encodebytes(content).decode().splitlines()
    body = [
        "--b",
        "Content-Type: text/plain",
        "",
        f"This is {subject}.",
        "--b",
        "Content-Type: application/octet-stream",
        "Content-Transfer-Encoding: base64",
        "Content-Disposition: attachment; filename=some.bin",
        "",
        *lines,
        "--b--",
        "",
    ]
    return "\r\n".join([*head, "Content-Type: multipart/mixed; boundary=b", "", *body]).encode()
