"""Which users a selection may name: conditions that would be narrowed silently are errors."""

from typing import Any

import httpx
import pytest

from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.lists.input_locations import (
    input_locations,
    run_at_location,
)

CONDITIONS: dict[str, Any] = {
    "all": True,
    "patterns": ["*"],
    "domains": [{"name": "example.org"}],
    "tags": ["blue"],
}
LOCATIONS = {location.key: location for location in input_locations({"UserSelection"})}
MAILBOXES_QUERY = "query ($users: UserSelection) { mailboxes(users: $users) { totalCount } }"


async def list_error_codes(client: GraphQLClient, users: dict[str, Any]) -> list[str]:
    """The codes of the errors of a query and of a mutation with this selection."""
    response = await client.execute(MAILBOXES_QUERY, users=users)
    codes = [error["extensions"]["code"] for error in response.get("errors", ())]
    payload = await execute_mutation(client, "userUpdate", "", users=users, set={"language": "de"})
    return codes + [error["code"] for error in payload["errors"]]


async def test_user_can_select_others_by_no_condition_of_any_field(ada: GraphQLClient) -> None:
    """An error of another field can come first, but is the same for each condition."""
    for case in each_case(LOCATIONS.values()):
        with case as location:
            codes = {}
            for name, value in CONDITIONS.items():
                _, errors = await run_at_location([ada], location, {name: value})
                codes[name] = [code for code, _ in errors]
            assert codes["all"]
            assert codes == dict.fromkeys(CONDITIONS, codes["all"])


@pytest.mark.usefixtures("ada")
async def test_domain_admin_selects_only_administered_domains(
    root: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    await execute_mutation(root, "domainCreate", "domain { id }", name="elsewhere.example")
    keeper = await make_domain_admin(environment, http, "keeper", [AdminPermission.IMPERSONATE])
    for domains in (
        [{"name": "elsewhere.example"}],
        [{"name": "unknown.example"}],
        [{"name": "example.org"}, {"name": "elsewhere.example"}],
    ):
        assert await list_error_codes(keeper, {"domains": domains}) == ["FORBIDDEN"] * 2
    for users in ({"domains": [{"name": "EXAMPLE.org"}]}, {"patterns": ["*"]}, {"tags": ["x"]}):
        assert await list_error_codes(keeper, users) == []


@pytest.mark.parametrize(
    "users", [{"patterns": ["a*"]}, {"domains": [{"name": "example.org"}]}, {"tags": ["staff"]}]
)
async def test_selected_user_who_can_not_be_changed_is_an_error(
    root: GraphQLClient,
    ada: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
    users: dict[str, Any],
) -> None:
    keeper = await make_domain_admin(environment, http, "keeper", [AdminPermission.IMPERSONATE])
    selection = {"usernames": ["ada"]}
    await execute_mutation(root, "userUpdate", "", users=selection, set={"tags": ["staff"]})
    assert await list_error_codes(keeper, users) == []
    boss = await make_client(environment, http, "aboss", role=Role.ADMIN)
    selection = {"usernames": ["aboss"]}
    await execute_mutation(root, "userUpdate", "", users=selection, set={"tags": ["staff"]})
    assert boss.user.domain_id == ada.user.domain_id
    assert await list_error_codes(keeper, users) == ["FORBIDDEN"]
