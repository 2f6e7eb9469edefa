"""Submissions of other accounts: administrators see those of the accounts that they manage."""

from typing import Any

import httpx
import pytest

from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import Client, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import id_of, run

SHOWN = "id queueId state envelopeFrom recipients { recipient state }"
OF_USER = f"""query ($by: UserRef!) {{ user(by: $by) {{ id submissions {{
  totalCount nodes {{ {SHOWN} }} }} }} }}"""
OF_ALL = "{ users { nodes { id submissions { nodes { id } } } } }"
NODE = f"query ($id: ID!) {{ node(id: $id) {{ ... on Submission {{ {SHOWN} }} }} }}"


async def sent(client: Client) -> dict[str, Any]:
    given = {"to": [{"address": "carol@example.net"}], "subject": "Secret", "text": "Hi."}
    done = await run(client, "messageSend", f"submission {{ {SHOWN} }}", **given)
    found: dict[str, Any] = done["submission"]
    return found


async def test_administrators_see_submissions_of_the_accounts_they_manage(
    ada: Client, root: Client, over: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    one = await sent(ada)
    assert one["recipients"] == [{"recipient": "carol@example.net", "state": "PENDING"}]
    keeper = await make_domain_admin(world, http, "keeper", [AdminPermission.LOGIN_AS])
    for client in (ada, root, over, keeper):
        seen = await client(OF_USER, by={"id": id_of(ada)})
        assert seen["user"]["submissions"] == {"totalCount": 1, "nodes": [one]}
        assert (await client(NODE, id=one["id"]))["node"] == one


@pytest.mark.parametrize("field", ["submissions { nodes { id } }", "exports { id }"])
async def test_a_list_that_one_may_not_see_is_an_error(
    field: str, ada: Client, over: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    one = await sent(ada)
    top = await make_client(world, http, "top", role=Role.ROOT)
    bare = await make_domain_admin(world, http, "bare")
    document = f"query ($by: UserRef!) {{ user(by: $by) {{ {field} }} }}"
    for client, other in ((bare, ada), (over, top)):
        (error,) = (await client.raw(document, by={"id": id_of(other)}))["errors"]
        path = ["user", field.partition(" ")[0]]
        assert (error["extensions"]["code"], error["path"]) == ("FORBIDDEN", path)
    assert (await bare(NODE, id=one["id"]))["node"] is None


async def test_a_domain_administrator_sees_no_other_domain(
    ada: Client, root: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    one = await sent(ada)
    await run(root, "domainCreate", "domain { id }", name="example.net")
    away = await make_domain_admin(
        world, http, "away", [AdminPermission.LOGIN_AS], domains=["example.net"]
    )
    assert (await away(OF_USER, by={"id": id_of(ada)}))["user"] is None
    assert (await away(NODE, id=one["id"]))["node"] is None
    listed = (await away(OF_ALL))["users"]["nodes"]
    assert id_of(ada) not in {node["id"] for node in listed}


async def test_another_user_sees_nothing(ada: Client, bob: Client) -> None:
    one = await sent(ada)
    assert (await bob(OF_USER, by={"id": id_of(ada)}))["user"] is None
    assert (await bob(NODE, id=one["id"]))["node"] is None
