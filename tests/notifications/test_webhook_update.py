"""Test updates of webhooks."""

from typing import Any

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.servers.webhook_receiver import allow_local_webhooks, create_webhook

WEBHOOK_UPDATE = """mutation ($id: ID!, $set: WebhookPatch!) {
  webhookUpdate(input: {webhooks: [{id: $id}], set: $set}) {
    webhooks { types active } errors { code path } } }"""


async def test_update_with_types_null_selects_all_types(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    allow_local_webhooks(environment)
    webhook_id, _ = await create_webhook(root, "https://a.example/", "USER_CREATED")

    async def update_webhook(**patch: Any) -> tuple[Any, Any]:
        payload = (await root(WEBHOOK_UPDATE, id=webhook_id, set=patch))["webhookUpdate"]
        return payload["webhooks"], payload["errors"]

    assert await update_webhook(active=True) == ([{"types": ["USER_CREATED"], "active": True}], [])
    assert await update_webhook(types=None) == ([{"types": None, "active": True}], [])
    _, errors = await update_webhook(types=[])
    assert [(error["code"], error["path"][:2]) for error in errors] == [
        ("VALIDATION", ["set", "types"])
    ]
    patch = {"types": ["USER_CREATED"]}
    refused = (await ada(WEBHOOK_UPDATE, id=webhook_id, set=patch))["webhookUpdate"]
    assert [error["code"] for error in refused["errors"]] == ["FORBIDDEN"]
    assert await update_webhook(active=True) == ([{"types": None, "active": True}], [])
