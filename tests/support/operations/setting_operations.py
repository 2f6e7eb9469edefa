"""Settings, as tests set them."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.admin.settings import SettingValue
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.context import Context, Viewer
from tests.conftest import Client

SET = """mutation ($key: String!, $value: JSON, $options: MutationOptions) {
  settingSet(input: {key: $key, value: $value, options: $options}) {
    setting { key value default type custom name restartRequired }
    errors { __typename code message path ... on ValidationError { constraint } } } }"""
UNSET = """mutation ($keys: [String!]!) { settingDelete(input: {keys: $keys}) {
    settings { key value custom } warnings { code path }
    errors { __typename path index ... on ValidationError { constraint } } } }"""
MOST = "submission.maxRecipients"


async def put(client: Client, key: str, value: Any, **options: Any) -> Any:
    done = (await client(SET, key=key, value=value, options=options))["settingSet"]
    assert done["errors"] == []
    return done["setting"]


async def refused(client: Client, key: str, value: Any) -> Any:
    before = await stored(client.world)
    done = (await client(SET, key=key, value=value))["settingSet"]
    assert done["setting"] is None
    assert await stored(client.world) == before
    (error,) = done["errors"]
    return error


async def stored(world: Environment) -> dict[str, Any]:
    asked = select(col(SettingValue.key), col(SettingValue.value))
    return {row.key: row.value["value"] for row in await world.database.read(asked)}


def operator(world: Environment) -> Context:
    return Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
