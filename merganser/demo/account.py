"""Create the demo accounts, and deliver messages once through the delivery code."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from mail.envelope import local_recipient
from mail.recipients import address_resolution
from mail.storage import message_insert, received_messages
from merganser.commands.users.user_operations import set_password
from merganser.demo import DemoMessage, generate_messages
from merganser.demo.credentials import (
    ADDRESS,
    ADMINISTRATOR_USERNAME,
    DOMAIN,
    SECOND_USERNAME,
    USERNAME,
    DemoAccount,
    DemoAccounts,
    account_file,
    read_account_or_none,
)
from merganser.errors import CommandError
from merganser.server.environment_factory import root_context, user_context
from merganser.server.private_files import replace_private_file
from models.auth.credentials import ApiKey
from models.errors import OverQuota
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.users.roles import Role
from models.users.tables import User
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.auth.authentication import secret_digest
from resolvers.auth.passwords import new_passwords, password_hashes, password_policy
from resolvers.domains import loaders as domain_loaders
from resolvers.domains import mutations as domain_mutations
from resolvers.domains.mutations import DomainValues
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes
from resolvers.messages.bulk import flag_changes, flags, row_changes
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser

MAX_CONCURRENT_DELIVERIES = 32
RANDOM_SEED = 1

ShowDemoProgress = Callable[[int, int], None]  # takes the number delivered and the total


async def ensure_demo_accounts_with_messages(
    environment: Environment,
    data_folder: Path,
    message_count: int,
    report_progress: ShowDemoProgress,
) -> DemoAccounts:
    """Create the demo accounts that are missing, and deliver the messages of the user once.

    Returns their credentials. Raises CommandError if the messages exceed the quota.
    """
    account = await _ensure_user_key_and_credentials_file(environment, data_folder, USERNAME)
    row = await _load_user_or_none(environment, USERNAME)
    if row is not None and not (row.private_metadata or {}).get("demo", {}).get("filled"):
        await _deliver_missing_messages(environment, row, message_count, report_progress)
    return DemoAccounts(
        account,
        await _ensure_user_key_and_credentials_file(
            environment, data_folder, ADMINISTRATOR_USERNAME, Role.ADMIN
        ),
        await _ensure_user_key_and_credentials_file(environment, data_folder, SECOND_USERNAME),
    )


async def _ensure_user_key_and_credentials_file(
    environment: Environment, data_folder: Path, username: str, role: Role = Role.USER
) -> DemoAccount:
    """Create the user and API key that are missing, and return credentials that are still valid.

    A user without a credentials file gets a new password. The returned password is None if the
    stored one is no longer valid.
    """
    stored_account = read_account_or_none(data_folder, username)
    account = stored_account or DemoAccount(
        await _generate_password(environment), username=username, address=f"{username}@{DOMAIN}"
    )
    path = account_file(data_folder, username)
    row = await _load_user_or_none(environment, username)
    if stored_account is None:
        replace_private_file(path, json.dumps(asdict(account)))  # before the user exists
    if row is None:
        if account.password is None:
            account = replace(account, password=await _generate_password(environment))
        row = await _create_user_and_missing_domain(environment, account, role)
    elif stored_account is None and account.password:
        await set_password(root_context(environment), row.id, account.password)
    elif not await password_hashes.retry_while_hash_workers_are_busy(
        partial(password_hashes.check_password, environment, row.password, account.password or "")
    ):
        account = replace(account, password=None)
    if account.key is None or not await _is_api_key_stored(environment, account.key):
        new = NewApiKey(username, row.role, user_id=row.id)
        account = replace(
            account, key=(await api_key_mutations.create_api_key(root_context(environment), new))[1]
        )
    if account != stored_account:
        replace_private_file(path, json.dumps(asdict(account)))
    return account


async def _generate_password(environment: Environment) -> str:
    return new_passwords.generate_password(
        environment,
        await password_policy.load_policy_of_address(root_context(environment), ADDRESS),
    )


async def _load_user_or_none(environment: Environment, username: str) -> Any:
    key = await address_resolution.find_sign_in_user_id(environment, username)
    statement = select(
        col(User.id),
        col(User.tenant_id),
        col(User.role),
        col(User.password),
        col(User.private_metadata),
    ).where(col(User.id) == (key or 0))
    return next(iter(await environment.database.read(statement)), None)


async def _create_user_and_missing_domain(
    environment: Environment, account: DemoAccount, role: Role
) -> Any:
    note = {"at": environment.now().isoformat(), "filled": False}
    new = NewUser(
        username=account.username,
        role=role,
        name="Demo Duck",
        address=account.address,
        password=account.password,
        private_metadata={"demo": note},
    )
    ctx = root_context(environment)
    if await domain_loaders.find_administered_domain(ctx, DOMAIN) is None:
        await domain_mutations.create_domain(ctx, DOMAIN, DomainValues(), with_dkim_key=False)
    await password_hashes.retry_while_hash_workers_are_busy(
        partial(creation_create.create_user, ctx, new)
    )
    return await _load_user_or_none(environment, account.username)


async def _is_api_key_stored(environment: Environment, api_key: str) -> bool:
    statement = select(col(ApiKey.id)).where(col(ApiKey.digest) == secret_digest(api_key))
    return bool(await environment.database.read(statement))


async def _deliver_missing_messages(
    environment: Environment, user: Any, message_count: int, report_progress: ShowDemoProgress
) -> None:
    """Deliver missing messages. The stored time `at` makes a later run generate the same ones."""
    note = (user.private_metadata or {}).get("demo") or {"at": environment.now().isoformat()}
    now = datetime.fromisoformat(note["at"])
    messages = await asyncio.to_thread(
        lambda: list(generate_messages(RANDOM_SEED, message_count, now=now, owner_address=ADDRESS))
    )
    mailbox_ids = await _ensure_mailbox_ids_by_path(
        environment, user.id, {message.mailbox for message in messages}
    )
    stored_digests = await _load_message_digests(environment, user.id)
    remaining, delivered_count = iter(messages), 0
    while batch := list(islice(remaining, MAX_CONCURRENT_DELIVERIES)):
        await asyncio.gather(
            *(
                _deliver_message_unless_stored(environment, user, mailbox_ids, stored_digests, row)
                for row in batch
            )
        )
        delivered_count += len(batch)
        report_progress(delivered_count, len(messages))
    await _mark_answered(
        environment, user.id, [message for message in messages if message.is_answered]
    )

    def mark_filled(transaction: DatabaseTransaction) -> None:
        data = {**(user.private_metadata or {}), "demo": {**note, "filled": True}}
        transaction.connection.execute(
            update(User).where(col(User.id) == user.id).values(private_metadata=data)
        )

    await environment.run_transaction(mark_filled, user.id)


async def _ensure_mailbox_ids_by_path(
    environment: Environment, user_id: int, paths: set[str]
) -> dict[str, int]:
    ctx = user_context(environment, user_id)
    ids_by_path = {
        row.path: int(row.id)
        for row in await mailbox_loaders.load_visible_mailboxes_of_user(ctx, user_id, ())
    }
    for path in sorted(paths - ids_by_path.keys()):
        for mailbox in await mailbox_create.create_mailboxes(ctx, NewMailboxes([path])):
            ids_by_path[mailbox.path] = mailbox.id
    return ids_by_path


async def _load_message_digests(environment: Environment, user_id: int) -> set[str]:
    statement = select(col(Message.sha256)).where(col(Message.user_id) == user_id)
    return {row.sha256 for row in await environment.database.read(statement)}


async def _deliver_message_unless_stored(
    environment: Environment,
    user: Any,
    mailbox_ids: dict[str, int],
    stored_digests: set[str],
    message: DemoMessage,
) -> None:
    parsed_message = await received_messages.parse_storable_message(message.raw)
    if parsed_message.digest in stored_digests:
        return
    mailbox_id, sender = mailbox_ids[message.mailbox], message.envelope_from
    recipient = local_recipient.LocalRecipient(user.id, user.tenant_id, mailbox_id, 0, ADDRESS)
    placement = message_insert.MessagePlacement(
        user.id,
        mailbox_id,
        message.received_at,
        seen=message.is_seen,
        flagged=message.is_flagged,
        draft=message.is_draft,
        envelope_from=sender,
        envelope_to=[ADDRESS],
    )
    try:
        await received_messages.store_once_for_recipient(
            environment, parsed_message, recipient, sender, placement=placement
        )
    except OverQuota as refusal:
        raise CommandError(str(refusal)) from refusal


async def _mark_answered(
    environment: Environment, user_id: int, messages: Sequence[DemoMessage]
) -> None:
    ctx = user_context(environment, user_id)
    digests = [
        (await received_messages.parse_storable_message(message.raw)).digest for message in messages
    ]
    async with ctx.write_session(user_id) as session:
        statement = select(col(Message.id)).where(
            col(Message.user_id) == user_id, col(Message.sha256).in_(digests)
        )
        ids = [row.id for row in await ctx.read(statement)]
        rows = await row_changes.load_rows_in_transaction(session, ids)
        await flags.change_flags(ctx, session, rows, flag_changes.FlagChanges({"answered": True}))
