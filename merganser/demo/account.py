"""Create the demo account, and deliver its messages once through the delivery code."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from mail.envelope import local_recipient
from mail.recipients import address_resolution
from mail.storage import message_insert, received_messages
from merganser.commands.user_operations import set_password
from merganser.demo import Letter, letters
from merganser.demo.credentials import ADDRESS, NAME, DemoAccount, read_account
from merganser.errors import Trouble
from merganser.server.environment_factory import on_behalf, owner
from merganser.server.private_files import replaced
from models.auth.credentials import ApiKey
from models.errors import OverQuota
from models.messages.tables import Message
from models.runtime.environment import Turn, World
from models.users.tables import User
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey
from resolvers.auth.authentication import digest_of
from resolvers.auth.passwords import new_passwords, password_hashes, password_policy
from resolvers.domains import loaders as domain_loaders
from resolvers.domains import mutations as domain_mutations
from resolvers.domains.mutations import Values
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.messages.bulk import flags, row_changes
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser

COUNT = 520
TOGETHER = 32
SEED = 1

Progress = Callable[[int, int], None]  # takes the number delivered and the total


async def furnish(environment: World, data: Path, count: int, progress: Progress) -> DemoAccount:
    """Create the demo account if it is missing, and deliver its messages once.

    Returns its credentials. Raises CommandError if the messages exceed the quota.
    """
    account = await _account(environment, data)
    row = await _row(environment)
    if row is not None and not (row.internal_data or {}).get("demo", {}).get("filled"):
        await _fill(environment, row, count, progress)
    return account


async def _account(environment: World, data: Path) -> DemoAccount:
    """Create the user and API key that are missing; return credentials that are still valid."""
    noted = read_account(data)
    account = noted or DemoAccount(await _password(environment))
    row = await _row(environment)
    if noted is None:
        replaced(data / "demo.json", json.dumps(asdict(account)))  # before the user exists
    if row is None:
        if account.password is None:
            account = replace(account, password=await _password(environment))
        row = await _create(environment, account)
    elif noted is None and account.password:
        await set_password(owner(environment), row.id, account.password)
    elif not await password_hashes.check(environment, row.password, account.password or ""):
        account = replace(account, password=None)
    if account.key is None or not await _good(environment, account.key):
        new = NewKey("demo", row.role, user_id=row.id)
        account = replace(account, key=(await api_keys.create_key(owner(environment), new))[1])
    if account != noted:
        replaced(data / "demo.json", json.dumps(asdict(account)))
    return account


async def _password(environment: World) -> str:
    return new_passwords.generated(
        environment, await password_policy.of_address(owner(environment), ADDRESS)
    )


async def _row(environment: World) -> Any:
    key = await address_resolution.login_of(environment, NAME)
    statement = select(
        col(User.id),
        col(User.tenant_id),
        col(User.role),
        col(User.password),
        col(User.internal_data),
    ).where(col(User.id) == (key or 0))
    return next(iter(await environment.database.read(statement)), None)


async def _create(environment: World, account: DemoAccount) -> Any:
    begun = {"at": environment.now().isoformat(), "filled": False}
    new = NewUser(
        username=account.username,
        name="Demo Duck",
        address=account.address,
        password=account.password,
        internal_data={"demo": begun},
    )
    ctx, domain = owner(environment), ADDRESS.rpartition("@")[2]
    if await domain_loaders.named(ctx, domain) is None:
        await domain_mutations.create(ctx, domain, Values(), with_key=False)
    await creation_create.create(ctx, new)
    return await _row(environment)


async def _good(environment: World, secret: str) -> bool:
    statement = select(col(ApiKey.id)).where(col(ApiKey.digest) == digest_of(secret))
    return bool(await environment.database.read(statement))


async def _fill(environment: World, row: Any, count: int, progress: Progress) -> None:
    """Deliver missing messages. The stored time `at` makes a later run generate the same ones."""
    note = (row.internal_data or {}).get("demo") or {"at": environment.now().isoformat()}
    now = datetime.fromisoformat(note["at"])
    bag = await asyncio.to_thread(lambda: list(letters(SEED, count, now=now, owner=ADDRESS)))
    boxes = await _boxes(environment, row.id, {letter.mailbox for letter in bag})
    there = await _digests(environment, row.id)
    rest, done = iter(bag), 0
    while some := list(islice(rest, TOGETHER)):
        await asyncio.gather(*(_deliver(environment, row, boxes, there, one) for one in some))
        done += len(some)
        progress(done, len(bag))
    await _answered(environment, row.id, [one for one in bag if one.answered])

    def finished(turn: Turn) -> None:
        data = {**(row.internal_data or {}), "demo": {**note, "filled": True}}
        turn.connection.execute(
            update(User).where(col(User.id) == row.id).values(internal_data=data)
        )

    await environment.apply(finished, row.id)


async def _boxes(environment: World, user_id: int, paths: set[str]) -> dict[str, int]:
    ctx = on_behalf(environment, user_id)
    there = {row.path: int(row.id) for row in await mailbox_loaders.all_of(ctx, user_id, ())}
    for path in sorted(paths - there.keys()):
        for box in await mailbox_loaders.create(ctx, NewMailboxes([path])):
            there[box.path] = box.id
    return there


async def _digests(environment: World, user_id: int) -> set[str]:
    statement = select(col(Message.digest)).where(col(Message.user_id) == user_id)
    return {row.digest for row in await environment.database.read(statement)}


async def _deliver(
    environment: World, row: Any, boxes: dict[str, int], there: set[str], one: Letter
) -> None:
    letter = await received_messages.read(one.raw)
    if letter.digest in there:
        return
    box, sender = boxes[one.mailbox], one.envelope_from
    to = local_recipient.Recipient(row.id, row.tenant_id, box, 0, ADDRESS)
    place = message_insert.Place(
        row.id,
        box,
        one.received_at,
        seen=one.seen,
        flagged=one.flagged,
        draft=one.draft,
        envelope_from=sender,
        envelope_to=[ADDRESS],
    )
    try:
        await received_messages.receive(environment, letter, to, sender, into=place)
    except OverQuota as refusal:
        raise Trouble(f"the demo account is full: {refusal}") from refusal


async def _answered(environment: World, user_id: int, replied: Sequence[Letter]) -> None:
    ctx = on_behalf(environment, user_id)
    digests = [(await received_messages.read(one.raw)).digest for one in replied]
    async with ctx.write(user_id) as session:
        statement = select(col(Message.id)).where(
            col(Message.user_id) == user_id, col(Message.digest).in_(digests)
        )
        ids = [row.id for row in await ctx.read(statement)]
        rows = await row_changes.chosen(session, ids)
        await flags.change(ctx, session, rows, row_changes.Changes({"answered": True}))
