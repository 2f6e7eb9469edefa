"""The rows that a deletion leaves: every row of every table is searched."""

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
from resolvers.context import Context
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_api_key, make_user
from tests.support.accounts.user_operations import execute_mutation
from tests.support.stores.counter_check import select_rows
from tests.support.targets.target_objects import TargetObjects, create_target_objects

FULL = frozenset({Scope.FULL})
DELETED_NAMES = {"far.example", "markfaraway.example"}
# Columns that keep a name of a deleted object, and the reason.
KEPT_COLUMNS = {
    "audit_log.before": "logs are kept for their own time",
    "audit_log.actor": "as above",
    "audit_log.after": "as above",
    "audit_log.target_id": "as above",
    "security_events.detail": "as above",
    "changes.facts": "the journal tells clients what was deleted",
    "changes.ids": "as above",
    "changes.stream_id": "as above",
    "delivery_trace_steps.address": "a trace outlives the account",
    "delivery_trace_steps.normalized_address": "as above",
    "delivery_trace_steps.recipient_domain": "as above",
    "delivery_trace_steps.sender": "as above",
    "delivery_trace_steps.normalized_sender_address": "as above",
    "delivery_trace_steps.sender_domain": "as above",
    "delivery_trace_steps.stored_message_id": "as above",
    "delivery_trace_steps.domain_id": "as above",
    "delivery_trace_steps.detail": "as above",
    "credential_changes.user_id": "each process reads it once; deleted after an hour",
    "blobs.tenant_id": "the collector deletes blobs that nothing refers to",
    "legal_holds.user_id": "a legal hold outlives its account",
    "legal_holds.username": "as above",
    "tasks.order": "what was done is listed for a while",
    "tls_policies.destination": "a route to other servers: the domain may live there now",
    "transports.destination": "as above",
}


def texts_in_value(value: Any) -> Iterator[str]:
    """Yield the names and numbers in a value as texts."""
    if isinstance(value, dict):
        for member in (*value, *value.values()):
            yield from texts_in_value(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from texts_in_value(member)
    elif value is not None and not isinstance(value, bool | bytes | datetime):
        yield str(value).casefold()


async def find_columns(environment: Environment, numbers: set[int], texts: set[str]) -> set[str]:
    """Return the columns (table.column) with one of these numbers or texts."""
    columns = set[str]()
    number_texts = {str(number) for number in numbers}
    for table in SQLModel.metadata.sorted_tables:
        for row in await environment.database.read(select(table)):
            for column, value in zip(table.c, row, strict=True):
                for value_text in texts_in_value(value):
                    if value_text in number_texts or any(text in value_text for text in texts):
                        columns.add(f"{table.name}.{column.name}")
    return columns


@pytest.fixture
async def far_user(environment: Environment) -> TargetObjects:
    """A user alone in a domain, with one object of each kind."""
    new_user = NewUser(username="faraway", address="faraway@far.example", password_disabled=True)
    await creation_create.create_user(
        Context(environment, Viewer(role=Role.ROOT, scopes=FULL)), new_user
    )
    await make_user(environment, "sharer")
    query = select(*select_columns(User)).where(col(User.username).in_(["faraway", "sharer"]))
    users = {row.username: row for row in await environment.database.read(query)}
    made = await create_target_objects(
        environment, users["faraway"], "faraway@far.example", users["sharer"]
    )
    for domain in ("far.example", "markfaraway.example"):
        await made.insert_row(
            "", RecipientRewrite, local="x", domain=domain, target="a@example.net"
        )
    return made


async def test_no_row_keeps_the_name_of_a_deleted_domain(
    root: GraphQLClient,
    admin_client: GraphQLClient,
    far_user: TargetObjects,
    environment: Environment,
) -> None:
    home_query = f"SELECT domain_id FROM users WHERE id = {admin_client.user.id}"  # noqa: S608
    home_domain_id = (await select_rows(environment, home_query))[0][0]
    deleted_id = far_user.ids_by_kind["Domain"]
    for name, domains in (("one", [deleted_id]), ("two", [deleted_id, home_domain_id])):
        await make_api_key(environment, name, role=Role.DOMAIN_ADMIN, domains=domains)
    arguments = {"domains": [{"name": "far.example"}], "cascade": True}
    columns = await find_columns(environment, {deleted_id}, DELETED_NAMES)
    assert {"recipient_rewrites.domain", "api_keys.domains", "domain_aliases.alias"} <= columns
    payload = await execute_mutation(root, "domainDelete", "deletedIds", **arguments)
    assert payload["errors"] == []
    while await tasks.run_next_task(environment):
        pass
    assert await find_columns(environment, {deleted_id}, DELETED_NAMES) <= set(KEPT_COLUMNS) | {
        "tasks.order"
    }
    key_rows = await select_rows(
        environment, "SELECT domains FROM api_keys WHERE user_id IS NULL AND role <> 'ROOT'"
    )
    assert [texts_in_json_list(domains) for (domains,) in key_rows] == [[str(home_domain_id)]]


async def test_no_row_keeps_the_name_of_a_purged_user(
    root: GraphQLClient, far_user: TargetObjects, environment: Environment
) -> None:
    selection = {"users": {"usernames": ["faraway"]}}
    assert (await execute_mutation(root, "userDelete", "deletedIds", **selection))["errors"] == []
    while await tasks.run_next_task(environment):
        pass
    columns = await find_columns(environment, {far_user.user.id}, {"faraway@far.example"})
    assert columns <= {*KEPT_COLUMNS}


def texts_in_json_list(value: Any) -> list[str]:
    """The numbers in a list that is stored as JSON."""
    return list(texts_in_value(json.loads(value) if isinstance(value, str) else value))
