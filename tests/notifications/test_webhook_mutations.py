"""Webhooks: validation of input, lists, and permissions of administrators."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.servers.webhook_receiver import (
    WEBHOOK_CREATE,
    WebhookReceiver,
    allow_local_webhooks,
    create_webhook,
    load_webhook_log,
    make_webhook_worker,
    post_until_idle,
    run_webhook_create,
    run_webhook_receiver,
)


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    allow_local_webhooks(environment)
    async with run_webhook_receiver() as http_receiver:
        yield http_receiver


def user_ref(client: GraphQLClient) -> dict[str, str]:
    return {"username": client.user.username}


INVALID_WEBHOOKS: list[tuple[dict[str, Any], list[str], str]] = [
    ({"types": []}, ["types"], "LENGTH"),
    ({"url": "ftp://example.com/"}, ["url"], "URL"),
    ({"url": "smtp://example.com/"}, ["url"], "URL"),
    ({"url": "https://"}, ["url"], "URL"),
    ({"url": "https://example.com:99999/"}, ["url"], "URL"),
    ({"url": "https://u:p@example.com/"}, ["url"], "URL"),
    ({"url": "https://example.com/#x"}, ["url"], "URL"),
    ({"url": "https://example.com/" + "x" * 2048}, ["url"], "URL"),
    ({"url": "http://localhost:1/"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://127.0.0.1/"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://0.0.0.0/"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://10.1.2.3/"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://169.254.169.254/latest"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://[::1]/"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://[::ffff:10.0.0.1]/"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://[fe80::1]/"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://[64:ff9b::7f00:1]/"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://[2002:7f00:1::]/"}, ["url"], "PRIVATE_NETWORK"),
    ({"url": "http://db.internal/"}, ["url"], "PRIVATE_NETWORK"),
]


async def test_invalid_webhook_input_is_refused(root: GraphQLClient) -> None:
    for case in each_case(INVALID_WEBHOOKS):
        with case as (fields, path, constraint):
            webhook_input = {"url": "https://example.com/", "types": None, **fields}
            payload = (await root(WEBHOOK_CREATE, input=webhook_input))["webhookCreate"]
            errors = [(e["path"], e["constraint"]) for e in payload["errors"]]
            assert [(error_path[:1], rule) for error_path, rule in errors] == [
                (path[:1], constraint)
            ]
            listing = await root("{ webhooks { totalCount } }")
            assert listing["webhooks"]["totalCount"] == 0


async def test_webhooks_are_filtered_by_type_and_user(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    allow_local_webhooks(environment)
    await create_webhook(root, "https://a.example/", "USER_CREATED", "MESSAGE_ADDED")
    await create_webhook(root, "https://b.example/", "USER_CREATED", user=user_ref(ada))
    await create_webhook(root, "https://c.example/", types=None)
    listing = "query ($f: WebhookFilter) { webhooks(filter: $f) { nodes { url } } }"

    async def list_hosts(**conditions: Any) -> list[str]:
        webhooks = (await root(listing, f=conditions or None))["webhooks"]["nodes"]
        return [str(webhook["url"])[8:9] for webhook in webhooks]

    assert await list_hosts() == ["a", "b", "c"]
    no_conditions: list[dict[str, Any]] = [{}, {"type": None, "user": None}]
    for filter_input in no_conditions:
        (error,) = (await root.execute(listing, f=filter_input))["errors"]
        assert (error["path"], error["extensions"]["code"]) == (["webhooks"], "BAD_USER_INPUT")
    assert await list_hosts(type="USER_CREATED") == ["a", "b", "c"]
    assert await list_hosts(type="MESSAGE_ADDED") == ["a", "c"]
    assert await list_hosts(type="MESSAGE_MOVED") == ["c"]
    assert await list_hosts(user=user_ref(ada)) == ["b"]


async def test_domain_admin_manages_only_webhooks_of_own_domain(
    environment: Environment, root: GraphQLClient, ada: GraphQLClient
) -> None:
    permissions = [AdminPermission.IMPERSONATE]
    domain_admin = await make_domain_admin(environment, ada.http, "dora", permissions)
    async with environment.write_session(0) as session:
        session.add(
            Domain(
                id=environment.new_id(),
                name="other.example",
                created_at=environment.now(),
                updated_at=environment.now(),
            )
        )
    url = "https://hooks.example.com/"
    platform_webhook_id, _ = await create_webhook(root, url)
    domain_webhook = await run_webhook_create(domain_admin, url, "MESSAGE_ADDED")
    assert domain_webhook["webhook"]["domain"] == {"name": "example.org"}
    user_webhook = await run_webhook_create(domain_admin, url, user=user_ref(ada))
    webhook = user_webhook["webhook"]
    assert (webhook["user"], webhook["domain"]) == ({"username": "ada"}, {"name": "example.org"})
    payload = await run_webhook_create(domain_admin, url, domain={"name": "other.example"})
    assert [e["code"] for e in payload["errors"]] == ["NOT_FOUND"]
    admin = await make_client(environment, ada.http, "boss", role=Role.ADMIN)
    payload = await run_webhook_create(domain_admin, url, user=user_ref(admin))
    assert [e["code"] for e in payload["errors"]] == ["NOT_FOUND"]
    visible = (await domain_admin("{ webhooks { nodes { id } } }"))["webhooks"]["nodes"]
    assert [webhook_node["id"] for webhook_node in visible] == [
        domain_webhook["webhook"]["id"],
        user_webhook["webhook"]["id"],
    ]
    for name in ("Delete", "Test", "Update"):
        extra_field = "set: {active: false}" if name == "Update" else ""
        text = """mutation ($id: ID!) { done: webhook%s(input: {webhooks: [{id: $id}] %s}) {
          errors { code path } } }"""
        result = (await domain_admin(text % (name, extra_field), id=platform_webhook_id))["done"]
        assert result["errors"] == [{"code": "NOT_FOUND", "path": ["webhooks", "0"]}]
    assert (await load_webhook_log(domain_admin, platform_webhook_id)) is None
    assert (
        await load_webhook_log(ada, domain_webhook["webhook"]["id"])
    ) is None  # a USER has no access to webhooks


async def test_number_of_webhooks_of_a_user_counts_those_of_all_creators(
    environment: Environment,
    root: GraphQLClient,
    ada: GraphQLClient,
    bob: GraphQLClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resolvers.notifications.webhooks.MAX_WEBHOOKS", 2)
    permissions = [AdminPermission.IMPERSONATE]
    domain_admin = await make_domain_admin(environment, ada.http, "dora", permissions)
    url = "https://hooks.example.com/"
    for client in (domain_admin, root):
        await create_webhook(client, url, user=user_ref(ada))
    for client in (domain_admin, root):
        (error,) = (await run_webhook_create(client, url, user=user_ref(ada)))["errors"]
        assert error["code"] == "LIMIT_REACHED"
    for scope in ({"user": user_ref(bob)}, {"domain": {"name": "example.org"}}, {}):
        await create_webhook(root, url, **scope)
        await create_webhook(root, url, **scope)
        (error,) = (await run_webhook_create(root, url, **scope))["errors"]
        assert error["code"] == "LIMIT_REACHED"


async def test_webhook_fields_cannot_be_set_to_null(root: GraphQLClient) -> None:
    webhook_id, _ = await create_webhook(root, "https://hooks.example.com/", "USER_CREATED")
    text = """mutation ($input: WebhookUpdateInput!) { webhookUpdate(input: $input) {
      errors { code } } }"""
    for name in ("url", "active"):
        input_fields = {"webhooks": [{"id": webhook_id}], "set": {name: None}}
        response = await root.execute(text, input=input_fields)
        assert [e["extensions"]["code"] for e in response["errors"]] == ["BAD_USER_INPUT"]


async def test_webhook_update_error_names_field_of_patch(root: GraphQLClient) -> None:
    webhook_id, _ = await create_webhook(root, "https://hooks.example.com/", "USER_CREATED")
    text = """mutation ($input: WebhookUpdateInput!) { webhookUpdate(input: $input) {
      errors { code path } } }"""
    input_fields = {"webhooks": [{"id": webhook_id}], "set": {"url": "http://10.0.0.1/"}}
    payload = (await root(text, input=input_fields))["webhookUpdate"]
    assert payload["errors"] == [{"code": "VALIDATION", "path": ["set", "url"]}]
    malformed = {"webhooks": [{"id": webhook_id}, {"id": "usr_1"}], "set": {"active": False}}
    payload = (await root(text, input=malformed))["webhookUpdate"]
    assert payload["errors"] == [{"code": "VALIDATION", "path": ["webhooks", "1", "id"]}]


async def test_deliveries_are_read_backwards(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, receiver: WebhookReceiver
) -> None:
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED", user=user_ref(ada))
    for subject in ("One", "Two", "Three"):
        await deliver_to(ada, subject)
    await post_until_idle(make_webhook_worker(environment))
    text = """query ($id: ID!, $last: Int, $before: String) { node(id: $id) { ... on Webhook {
      deliveries(last: $last, before: $before) { nodes { id }
        pageInfo { hasPreviousPage startCursor } } } } }"""
    newest_first = (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"]
    oldest = (await root(text, id=webhook_id, last=1))["node"]["deliveries"]
    assert [node["id"] for node in oldest["nodes"]] == [newest_first[2]["id"]]
    cursor = oldest["pageInfo"]["startCursor"]
    rest = (await root(text, id=webhook_id, last=5, before=cursor))["node"]["deliveries"]
    assert [node["id"] for node in rest["nodes"]] == [node["id"] for node in newest_first[:2]]
    assert rest["pageInfo"]["hasPreviousPage"] is False
