"""Webhooks end when their maker loses the role or the domain that they need."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.notifications.webhook_feed import create_deliveries_if_webhooks_active
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.lost_rights import (
    LOSSES,
    PERMISSION_LOSS,
    count_notices,
    load_security_actions,
    lose_rights,
)
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.servers.webhook_receiver import create_webhook
from tests.support.stores.counter_check import select_rows

DOMAIN = {"name": "example.org"}


async def load_urls(environment: Environment) -> list[str]:
    return sorted(url for (url,) in await select_rows(environment, "SELECT url FROM webhooks"))


async def set_role(root: GraphQLClient, username: str, **changes: Any) -> None:
    users = {"usernames": [username]}
    payload = await execute_mutation(root, "userRoleSet", "", users=users, **changes)
    assert payload["errors"] == []


@pytest.mark.parametrize("changes", [{"role": "USER"}, {"administers": []}])
async def test_webhooks_of_domain_admin_end_with_role_or_domain(
    root: GraphQLClient,
    ada: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
    changes: dict[str, Any],
) -> None:
    keeper = await make_domain_admin(environment, http, "keeper")
    ada_ref = {"username": ada.user.username}
    await create_webhook(keeper, "https://hooks.example/user", user=ada_ref)
    await create_webhook(keeper, "https://hooks.example/domain", domain=DOMAIN)
    await create_webhook(root, "https://hooks.example/root", domain=DOMAIN)
    taken_over, _ = await create_webhook(keeper, "https://hooks.example/old", domain=DOMAIN)
    payload = await execute_mutation(
        root,
        "webhookUpdate",
        "",
        webhooks=[{"id": taken_over}],
        set={"url": "https://hooks.example/new"},
    )
    assert payload["errors"] == []
    await set_role(root, "keeper", adminPermissions=["IMPERSONATE"])
    assert len(await load_urls(environment)) == 4
    await set_role(root, "keeper", **changes)
    assert await load_urls(environment) == [
        "https://hooks.example/new",
        "https://hooks.example/root",
    ]
    log = "SELECT count(*) FROM audit_log WHERE mutation = 'webhookDelete'"
    assert await select_rows(environment, log) == [(2,)]


async def test_administrator_of_fewer_domains_keeps_webhooks_of_remaining_ones(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    boss = await make_client(environment, http, "boss", role=Role.ADMIN)
    await create_webhook(boss, "https://hooks.example/platform")
    await create_webhook(boss, "https://hooks.example/user", user={"username": ada.user.username})
    await create_webhook(boss, "https://hooks.example/domain", domain=DOMAIN)
    await set_role(root, "boss", role="DOMAIN_ADMIN", administers=[DOMAIN])
    assert await load_urls(environment) == ["https://hooks.example/domain"]


async def test_webhook_made_with_key_for_domains_ends_with_role_of_its_user(
    root: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    keeper = await make_domain_admin(environment, http, "keeper")
    payload = await execute_mutation(
        keeper, "apiKeyCreate", "secret", name="k", role="DOMAIN_ADMIN", domains=[DOMAIN]
    )
    assert payload["errors"] == []
    keeper.secret = payload["secret"]
    await create_webhook(keeper, "https://hooks.example/domain", domain=DOMAIN)
    await set_role(root, "keeper", role="USER")
    assert await load_urls(environment) == []


@pytest.mark.usefixtures("ada")
async def test_webhooks_end_when_their_maker_loses_access(
    root: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    await create_webhook(root, "https://hooks.example/root", domain=DOMAIN)
    for case in each_case(loss for loss in LOSSES if loss != PERMISSION_LOSS):
        with case as loss:
            user = await make_client(environment, http, f"user-{loss}")
            keeper = await make_domain_admin(environment, http, f"keeper-{loss}")
            user_ref = {"username": user.user.username}
            await create_webhook(keeper, "https://hooks.example/user", user=user_ref)
            await create_webhook(keeper, "https://hooks.example/domain", domain=DOMAIN)
            await lose_rights(root, keeper, loss)
            assert await load_urls(environment) == ["https://hooks.example/root"]
            actions = await load_security_actions(environment, user)
            assert actions == ["WEBHOOK_CREATED", "WEBHOOK_DELETED"]


async def test_webhook_for_account_is_reported_to_the_user(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    url = "https://hooks.example/secret"
    webhook_id, _ = await create_webhook(root, url, user={"username": "ada"})
    payload = await execute_mutation(
        root, "webhookUpdate", "", webhooks=[{"id": webhook_id}], set={"active": False}
    )
    assert payload["errors"] == []
    payload = await execute_mutation(root, "webhookDelete", "", webhooks=[{"id": webhook_id}])
    assert payload["errors"] == []
    assert await load_security_actions(ada.environment, ada) == [
        "WEBHOOK_CREATED", "WEBHOOK_UPDATED", "WEBHOOK_DELETED",
    ]  # fmt: skip
    assert await count_notices(ada.environment, ada) == 3
    document = """{ viewer { user { securityLog(filter: {action: WEBHOOK_CREATED}) {
      nodes { detail } } } } }"""
    (event,) = (await ada(document))["viewer"]["user"]["securityLog"]["nodes"]
    assert event["detail"] == {"host": "hooks.example", "target": webhook_id}


async def test_webhook_of_domain_gets_no_mail_events_of_other_administrators(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    keeper = await make_domain_admin(environment, http, "keeper")
    await create_webhook(keeper, "https://hooks.example/domain", domain=DOMAIN)
    await create_webhook(keeper, "https://hooks.example/user", user={"username": "ada"})
    admin = await make_client(environment, http, "adam", role=Role.ADMIN)
    clients = {client.user.id: client.user.username for client in (ada, keeper, admin)}

    async def load_new_deliveries() -> list[tuple[str, str]]:
        await create_deliveries_if_webhooks_active(environment)
        rows = await select_rows(environment, "SELECT stream_id, type FROM webhook_deliveries")
        async with environment.write_session() as session:
            await (await session.connection()).execute(text("DELETE FROM webhook_deliveries"))
        return sorted((clients.get(stream_id, "domain"), event) for stream_id, event in rows)

    await load_new_deliveries()
    for client in (ada, keeper, admin):
        await deliver_to(client)
    received = EventType.MESSAGE_RECEIVED
    assert await load_new_deliveries() == [("ada", received)] * 2 + [("keeper", received)]
    await set_role(root, "ada", role="DOMAIN_ADMIN", administers=[DOMAIN])
    await load_new_deliveries()
    await deliver_to(ada)
    assert await load_new_deliveries() == []
    users = {"usernames": ["adam"]}
    changes = {"users": users, "set": {"name": "Adam"}}
    payload = await execute_mutation(root, "userUpdate", "", **changes)
    assert payload["errors"] == []
    assert ("adam", EventType.USER_UPDATED) in await load_new_deliveries()
