"""Settings by GraphQL and in the database."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.admin.settings import SettingValue
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient

SETTING_SET = """mutation ($key: String!, $value: JSON, $options: MutationOptions) {
  settingSet(input: {key: $key, value: $value, options: $options}) {
    setting { key value default type custom name restartRequired }
    errors { __typename code message path ... on ValidationError { constraint } } } }"""
SETTING_DELETE = """mutation ($settings: [SettingRef!]!) {
  settingDelete(input: {settings: $settings}) {
    settings { key value custom } warnings { code path }
    errors { __typename path ... on ValidationError { constraint } } } }"""
MAX_RECIPIENTS_KEY = "submission.maxRecipients"


def setting_refs(*keys: str) -> list[dict[str, str]]:
    """Return references to settings by key."""
    return [{"key": key} for key in keys]


async def set_setting(client: GraphQLClient, key: str, value: Any, **options: Any) -> Any:
    """Set a setting and return it."""
    payload = (await client(SETTING_SET, key=key, value=value, options=options))["settingSet"]
    assert payload["errors"] == []
    return payload["setting"]


async def expect_refused_setting(client: GraphQLClient, key: str, value: Any) -> Any:
    """Return the error of a setting that can't be set; nothing is stored."""
    stored_before = await load_stored_settings(client.environment)
    payload = (await client(SETTING_SET, key=key, value=value))["settingSet"]
    assert payload["setting"] is None
    assert await load_stored_settings(client.environment) == stored_before
    (error,) = payload["errors"]
    return error


async def load_stored_settings(environment: Environment) -> dict[str, Any]:
    """Read all stored settings."""
    statement = select(col(SettingValue.key), col(SettingValue.value))
    return {row.key: row.value["value"] for row in await environment.database.read(statement)}


def make_root_context(environment: Environment) -> Context:
    """The context of an operation by ROOT."""
    return Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
