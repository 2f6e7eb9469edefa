"""Accounts that are stored row by row without resolvers, for tests of the mail engine."""

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
class StoredAccount:
    """An account of example.org with the mailboxes INBOX and Notes."""

    environment: Environment
    user_id: int
    domain_id: int
    inbox_id: int
    notes_id: int
    address: str

    async def deliver(self, raw: bytes) -> message_insert.InsertedMessage:
        """Store a message as LMTP delivery does."""
        parsed = await received_messages.parse_storable_message(raw)
        recipient = LocalRecipient(self.user_id, self.domain_id, self.inbox_id, 0, self.address)
        return await received_messages.store_once_for_recipient(
            self.environment, parsed, recipient, "carol@example.com"
        )

    async def set_retention(self, retention: int, *, mailbox_id: int | None = None) -> None:
        """Set the retention of a mailbox in seconds; by default of INBOX."""
        async with self.environment.write_session(self.user_id) as session:
            mailbox = await session.get_one(Mailbox, mailbox_id or self.inbox_id)
            mailbox.retention = retention


async def make_domain(environment: Environment, name: str = "example.org") -> Domain:
    """Add a domain without users."""
    now = environment.now()
    domain = Domain(id=environment.new_id(), name=name, created_at=now, updated_at=now)
    async with environment.write_session() as session:
        session.add_all([domain, Stream(id=domain.id)])
    return domain


async def make_stored_account(environment: Environment, domain: Domain, name: str) -> StoredAccount:
    """Add an account with an address, INBOX and Notes, and update the counters of its domain."""
    now, user_id, address = environment.now(), environment.new_id(), f"{name}@{domain.name}"
    inbox_id, notes_id = environment.new_id(), environment.new_id()
    async with environment.write_session(domain.id) as session:
        stored_domain = await session.get_one(Domain, domain.id)
        stored_domain.user_count += 1
        stored_domain.address_count += 1
        stored_domain.quota_allocated += environment.options.users_default_quota
        session.add_all([stored_domain, Stream(id=user_id)])
        user = User(
            id=user_id,
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
        for mailbox_id, path, special_use in (
            (inbox_id, "INBOX", SpecialUse.INBOX),
            (notes_id, "Notes", None),
        ):
            session.add(
                Mailbox(
                    id=mailbox_id,
                    user_id=user_id,
                    path=path,
                    object_id=f"{mailbox_id:032x}",
                    special_use=special_use,
                    uid_validity=mailbox_id % 2**31,
                    created_at=now,
                )
            )
        session.add(
            Address(
                id=environment.new_id(),
                local=name,
                domain_id=domain.id,
                display_address=address,
                user_id=user_id,
                main=True,
                created_at=now,
                updated_at=now,
            )
        )
    return StoredAccount(environment, user_id, domain.id, inbox_id, notes_id, address)


def message_with_subject(
    subject: str, *, in_reply_to: str | None = None, attachment_size: int = 0, recipient: str = "x"
) -> bytes:
    """A message with a Message-ID made from its subject, and an attachment of random bytes."""
    header = [
        "From: Carol <carol@example.com>",
        f"To: {recipient}@example.org",
        f"Subject: {'Re: ' if in_reply_to else ''}{in_reply_to or subject}",
        f"Message-ID: <{subject.replace(' ', '.')}@example.com>",
        *([f"In-Reply-To: <{in_reply_to.replace(' ', '.')}@example.com>"] if in_reply_to else []),
        "MIME-Version: 1.0",
    ]
    if not attachment_size:
        return "\r\n".join([*header, "", f"This is {subject}.", ""]).encode()
    content = random.Random(subject).randbytes(attachment_size)  # noqa: S311 - any bytes will do
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
    return "\r\n".join([*header, "Content-Type: multipart/mixed; boundary=b", "", *body]).encode()
