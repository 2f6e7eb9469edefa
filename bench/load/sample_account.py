"""Create the account that is measured, with the real code, before the server starts."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from bench.load.message_generator import FIRST_DATE, MessageGenerator
from graph.types.global_ids import encode
from mail.envelope.local_recipient import LocalRecipient
from mail.recipients import address_resolution
from mail.search import index_worker
from mail.storage import message_insert, received_messages
from merganser.server.environment_factory import open_environment, root_context, user_context
from merganser.settings.settings import Settings
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.limit_values import Unlimited

READER_ADDRESS, RECEIVER_ADDRESS = "ada@bench.example", "post@bench.example"
CONCURRENT_DELIVERIES = 32  # concurrent deliveries
MESSAGE_SIZES = (1200, 2000, 2000, 3000, 6000)  # bytes, in rotation
ATTACHMENT_SIZE = 30_000  # bytes of an attachment
ATTACHMENT_INTERVAL, UNSEEN_INTERVAL, FLAGGED_INTERVAL = 7, 5, 20
FULL_MESSAGE_SIZE = 12_000  # bytes of the message that is read in full, without its attachment

DeliveryProgress = Callable[[int, int], None]  # delivered and total messages


@dataclass(frozen=True, slots=True)
class SampleAccount:
    """What the load needs to know of the sample account. IDs are global IDs."""

    api_key: str
    receiver_api_key: str
    inbox_id: str
    full_message_id: str  # the message that is read in full
    message_ids: list[str]  # newest first
    full_message: bytes
    baseline_inbox_id: str = ""  # the mailbox ID of the baseline if it has its own database
    baseline_message_keys: tuple[int, ...] = ()  # and its message keys


async def create_sample_account(
    data_folder: Path,
    database_url: str | None,
    *,
    message_count: int,
    mailbox_count: int,
    report_progress: DeliveryProgress,
) -> SampleAccount:
    """Create two users in a new database; the first gets the messages, indexed, and mailboxes."""
    settings = (
        Settings(data=data_folder, database_url=database_url)
        if database_url
        else Settings(data=data_folder)
    )
    async with open_environment(settings, migrate=True) as environment:
        ada = await create_user(environment, READER_ADDRESS)
        post = await create_user(environment, RECEIVER_ADDRESS)
        ctx = user_context(environment, ada.id)
        default_count = len(await mailbox_loaders.load_visible_mailboxes_of_user(ctx, ada.id, ()))
        paths = [f"Projects/No {n:02}" for n in range(1, mailbox_count - default_count)]
        await mailbox_create.create_mailboxes(ctx, NewMailboxes(paths))
        secrets = [
            (
                await api_key_mutations.create_api_key(
                    root_context(environment), NewApiKey("bench", user_id=user.id)
                )
            )[1]
            for user in (ada, post)
        ]
        full_raw = await _deliver_messages(environment, message_count, report_progress)
        while await index_worker.index_next_batch_and_record_contacts(environment):
            pass
        return await _read_sample_account(environment, secrets, full_raw)


async def create_user(environment: Environment, address: str, *targets: str, **more: Any) -> User:
    """Create a user with this address and its domain, without limits, forwarding to `targets`."""
    new = NewUser(
        username=address,
        address=address,
        password_disabled=True,
        quota=Unlimited.UNLIMITED,
        received_per_hour=Unlimited.UNLIMITED,
        forward_to=targets,
        **more,
    )
    options = replace(environment.options, auto_create_domains=True)
    return await creation_create.create_user(
        root_context(replace(environment, options=options)), new
    )


async def _deliver_messages(
    environment: Environment, count: int, report_progress: DeliveryProgress
) -> bytes:
    """Deliver the messages, oldest first, and return the bytes of the newest."""
    writer = MessageGenerator()
    to = await address_resolution.load_recipient_below_limits(environment, READER_ADDRESS)
    raw = b""
    for first in range(0, count, CONCURRENT_DELIVERIES):
        numbers = range(first, min(first + CONCURRENT_DELIVERIES, count))
        some = [_make_message(writer, number, is_last=number == count - 1) for number in numbers]
        await asyncio.gather(
            *(
                _deliver_message(environment, to, number, raw)
                for number, raw in zip(numbers, some, strict=True)
            )
        )
        raw = some[-1]
        report_progress(numbers.stop, count)
    return raw


def _make_message(generator: MessageGenerator, number: int, *, is_last: bool) -> bytes:
    """Return a message of the size and with the attachment that its number asks for."""
    attached = b""
    if is_last or number % ATTACHMENT_INTERVAL == 0:
        attached = Random(number).randbytes(ATTACHMENT_SIZE)  # noqa: S311 - only not to be compressed
    size = FULL_MESSAGE_SIZE if is_last else MESSAGE_SIZES[number % len(MESSAGE_SIZES)]
    return generator.make_message(number, size=size, attachment=attached)


async def _deliver_message(
    environment: Environment, recipient: LocalRecipient, number: int, raw_message: bytes
) -> None:
    """Store a message in INBOX, with flags and date by its number."""
    placement = message_insert.MessagePlacement(
        recipient.user_id,
        recipient.mailbox_id,
        FIRST_DATE + timedelta(minutes=number),
        seen=number % UNSEEN_INTERVAL > 0,
        flagged=number % FLAGGED_INTERVAL == 0,
        envelope_from="bob@example.com",
        envelope_to=[READER_ADDRESS],
    )
    await received_messages.store_once_for_recipient(
        environment,
        await received_messages.parse_storable_message(raw_message),
        recipient,
        "bob@example.com",
        placement=placement,
    )


async def _read_sample_account(
    environment: Environment, api_keys: list[str], full_message: bytes
) -> SampleAccount:
    """Return the sample account with the IDs of its messages, newest first."""
    to = await address_resolution.load_recipient_below_limits(environment, READER_ADDRESS)
    statement = select(col(Message.id)).where(col(Message.mailbox_id) == to.mailbox_id)
    newest = statement.order_by(col(Message.listed_at).desc(), col(Message.id).desc())
    ids = [str(encode("Message", row.id)) for row in await environment.database.read(newest)]
    reader, taker = api_keys
    return SampleAccount(
        reader, taker, str(encode("Mailbox", to.mailbox_id)), ids[0], ids, full_message
    )
