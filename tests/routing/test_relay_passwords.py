"""Passwords of relay hosts: encryption and rotation of the key."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.routing import password_contexts
from models.admin.audit_log import AuditLogEntry
from models.routing.tables import RelayHost
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox, generate_key
from resolvers.admin import secret_rotation
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import error_summary
from tests.support.routing.route_operations import RELAY_PASSWORD, create_item, update_items
from tests.support.stores.counter_check import select_rows


async def load_password(environment: Environment, relay_id: str) -> str | None:
    statement = select(col(RelayHost.secret)).where(
        col(RelayHost.id) == global_ids.decode("RelayHost", relay_id)
    )
    (row,) = await environment.database.read(statement)
    secret_context = password_contexts.relay_host_context(global_ids.decode("RelayHost", relay_id))
    return environment.secret_box.decrypt(row.secret, secret_context) if row.secret else None


async def test_password_is_encrypted_and_bound_to_its_server(
    root: GraphQLClient, environment: Environment
) -> None:
    credentials = {"username": "us", "password": RELAY_PASSWORD}
    first_relay, second_relay = [
        await create_item(root, "relayHost", **credentials) for _ in range(2)
    ]
    assert await load_password(environment, first_relay["id"]) == RELAY_PASSWORD
    for arguments in ({"host": "other.example"}, {"port": 26}, {"host": "relay.example:26"}):
        _, errors = await update_items(root, "relayHost", first_relay["id"], **arguments)
        assert error_summary(errors) == ("VALIDATION", ["set", "password"], None, "REQUIRED"), (
            arguments
        )
    _, errors = await update_items(
        root, "relayHost", first_relay["id"], second_relay["id"], active=False, tls=True
    )
    assert errors == []
    arguments = {"host": "other.example", "password": "new"}
    updated, errors = await update_items(root, "relayHost", first_relay["id"], **arguments)
    assert (errors, updated[0]["host"], await load_password(environment, first_relay["id"])) == (
        [],
        "other.example",
        "new",
    )
    transport = await create_item(root, "transport", **credentials)
    changes: list[dict[str, Any]] = [{"nextHop": "other.example"}, {"lookupMx": True}]
    for change_ in changes:
        _, errors = await update_items(root, "transport", transport["id"], **change_)
        assert error_summary(errors) == ("VALIDATION", ["set", "password"], None, "REQUIRED"), (
            change_
        )
    _, errors = await update_items(root, "transport", transport["id"], destination="b.example")
    assert errors == []
    statement = select(col(AuditLogEntry.before), col(AuditLogEntry.after))
    log_text = str([tuple(row) for row in await environment.database.read(statement)])
    assert RELAY_PASSWORD not in log_text
    assert "'password': '(hidden)'" in log_text
    stored_text = str(await select_rows(environment, "SELECT * FROM relay_hosts, transports"))
    assert RELAY_PASSWORD not in stored_text


async def test_secret_rotation_reencrypts_passwords(
    root: GraphQLClient, environment: Environment
) -> None:
    relay = await create_item(root, "relayHost", username="us", password=RELAY_PASSWORD)
    await create_item(root, "transport", username="us", password=RELAY_PASSWORD)
    name, key = generate_key()
    object.__setattr__(
        environment, "secret_box", SecretBox({**environment.secret_box.keys, name: key})
    )
    rotation = await secret_rotation.reencrypt_all_secrets(environment)
    assert (rotation.reencrypted_count, rotation.failed_contexts) == (2, [])
    assert await load_password(environment, relay["id"]) == RELAY_PASSWORD
