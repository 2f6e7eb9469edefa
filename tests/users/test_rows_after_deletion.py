"""What a deletion leaves behind: every row of every table is searched."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import SQLModel, col

from models.addresses.rewrites import RecipientRewrite
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.context import Context, Viewer
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.conftest import Client, make_key, make_user
from tests.support.accounts.user_operations import run
from tests.support.stores.counter_check import rows
from tests.support.targets.target_objects import Specimens, furnish

MASTER = frozenset({Scope.MASTER})
NAMES = {"far.example", "markfaraway.example"}
# What keeps a name of what is gone, and until when.
HISTORY = {
    "admin_log.before": "logs are kept for their own time",
    "admin_log.actor": "as above",
    "admin_log.after": "as above",
    "admin_log.target_id": "as above",
    "auth_events.detail": "as above",
    "changes.facts": "the journal tells clients what was deleted",
    "changes.ids": "as above",
    "changes.stream_id": "as above",
    "message_steps.address": "a trace outlives the account",
    "message_steps.compared": "as above",
    "message_steps.recipient_domain": "as above",
    "message_steps.sender": "as above",
    "message_steps.sender_compared": "as above",
    "message_steps.sender_domain": "as above",
    "message_steps.stored_message_id": "as above",
    "message_steps.domain_id": "as above",
    "message_steps.detail": "as above",
    "credential_changes.user_id": "each process reads it once; deleted after an hour",
    "blobs.tenant_id": "the collector deletes blobs that nothing refers to",
    "audits.user_id": "an audit outlives its account",
    "audits.username": "as above",
    "tasks.order": "what was done is listed for a while",
    "tls_policies.destination": "a route to other servers: the domain may live there now",
    "transports.destination": "as above",
}


def words(value: Any) -> Iterator[str]:
    """The names and numbers in a value, as texts."""
    if isinstance(value, dict):
        for one in (*value, *value.values()):
            yield from words(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from words(one)
    elif value is not None and not isinstance(value, bool | bytes | datetime):
        yield str(value).casefold()


async def places_of(world: Environment, numbers: set[int], texts: set[str]) -> set[str]:
    """The columns, as table.column, in which these numbers and texts occur."""
    found = set[str]()
    sought = {str(number) for number in numbers}
    for table in SQLModel.metadata.sorted_tables:
        for row in await world.database.read(select(table)):
            for column, value in zip(table.c, row, strict=True):
                for word in words(value):
                    if word in sought or any(text in word for text in texts):
                        found.add(f"{table.name}.{column.name}")
    return found


@pytest.fixture
async def far(world: Environment) -> Specimens:
    """An account of a domain that nobody else is in, with one object of each kind."""
    new = NewUser(username="faraway", address="faraway@far.example", password_disabled=True)
    await creation_create.create_user(Context(world, Viewer(role=Role.ROOT, scopes=MASTER)), new)
    await make_user(world, "sharer")
    asked = select(*select_columns(User)).where(col(User.username).in_(["faraway", "sharer"]))
    users = {row.username: row for row in await world.database.read(asked)}
    made = await furnish(world, users["faraway"], "faraway@far.example", users["sharer"])
    for domain in ("far.example", "markfaraway.example"):
        await made.add("", RecipientRewrite, local="x", domain=domain, target="a@example.net")
    return made


async def test_no_row_names_a_domain_that_was_deleted(
    root: Client, over: Client, far: Specimens, world: Environment
) -> None:
    home = (await rows(world, f"SELECT domain_id FROM users WHERE id = {over.user.id}"))[0][0]  # noqa: S608
    gone = far.keys["Domain"]
    for name, domains in (("one", [gone]), ("two", [gone, home])):
        await make_key(world, name, role=Role.DOMAIN_ADMIN, domains=domains)
    given = {"domains": [{"name": "far.example"}], "cascade": True}
    found = await places_of(world, {gone}, NAMES)
    assert {"recipient_rewrites.domain", "api_keys.domains", "domain_aliases.alias"} <= found
    done = await run(root, "domainDelete", "deletedIds", **given)
    assert done["errors"] == []
    while await tasks.run_next_task(world):
        pass
    assert await places_of(world, {gone}, NAMES) <= set(HISTORY) | {"tasks.order"}
    kept = await rows(
        world, "SELECT domains FROM api_keys WHERE user_id IS NULL AND role <> 'ROOT'"
    )
    assert [words_of(domains) for (domains,) in kept] == [[str(home)]]


async def test_no_row_names_an_account_that_was_purged(
    root: Client, far: Specimens, world: Environment
) -> None:
    who = {"users": {"usernames": ["faraway"]}}
    assert (await run(root, "userDelete", "deletedIds", **who))["errors"] == []
    while await tasks.run_next_task(world):
        pass
    found = await places_of(world, {far.user.id}, {"faraway@far.example"})
    assert found <= {*HISTORY}


def words_of(value: Any) -> list[str]:
    """The numbers in a list that is stored as JSON."""
    return list(words(json.loads(value) if isinstance(value, str) else value))
