"""Copies and replies that an administrator diverts are logged, and end with its rights."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.identity_operations import (
    create_identity,
    load_identities_by_address,
    try_update_identities,
)
from tests.support.accounts.lost_rights import (
    LOSSES,
    count_notices,
    load_audit_log_mutations,
    load_security_actions,
    lose_rights,
)
from tests.support.accounts.user_operations import execute_mutation, user_global_id

COPY = ["keeper@example.org"]


@pytest.fixture
async def keeper(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    """A domain administrator of ada who may set copies."""
    return await make_domain_admin(environment, http, "keeper", [AdminPermission.BCC_RULES])


async def divert_copies(keeper: GraphQLClient, ada: GraphQLClient, **values: Any) -> Any:
    owner = {"id": user_global_id(ada)}
    return await create_identity(keeper, ada.address, user=owner, name="Ada", **values)


@pytest.mark.parametrize("values", [{"bcc": COPY}, {"replyTo": COPY[0]}], ids=["bcc", "replyTo"])
@pytest.mark.parametrize("loss", LOSSES)
async def test_diversion_ends_when_its_maker_loses_its_rights(
    ada: GraphQLClient,
    keeper: GraphQLClient,
    root: GraphQLClient,
    loss: str,
    values: dict[str, Any],
) -> None:
    environment = ada.environment
    await divert_copies(keeper, ada, **values)
    assert await load_security_actions(environment, ada) == ["IDENTITY_BCC_CHANGED"]
    assert await count_notices(environment, ada) == 1
    await lose_rights(root, keeper, loss)
    identity = (await load_identities_by_address(ada))[ada.address]
    assert (identity["name"], identity["bcc"], identity["replyTo"]) == ("Ada", [], None)
    assert "identityUpdate" in await load_audit_log_mutations(environment)
    assert await count_notices(environment, ada) == 2


async def test_change_of_the_name_by_another_administrator_keeps_the_maker(
    ada: GraphQLClient, keeper: GraphQLClient, root: GraphQLClient
) -> None:
    await divert_copies(keeper, ada, bcc=COPY)
    _, errors = await try_update_identities(root, await identity_id(ada), name="Countess")
    assert errors == []
    await lose_rights(root, keeper, "role")
    assert (await load_identities_by_address(ada))[ada.address]["bcc"] == []


async def test_user_takes_over_a_diversion(
    ada: GraphQLClient, keeper: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await divert_copies(keeper, ada, bcc=COPY)
    _, errors = await try_update_identities(ada, await identity_id(ada), bcc=COPY)
    assert errors == []
    assert await count_notices(environment, ada) == 1
    await lose_rights(root, keeper, "role")
    assert (await load_identities_by_address(ada))[ada.address]["bcc"] == COPY


async def test_administrator_who_sets_the_same_copies_does_not_take_over(
    ada: GraphQLClient, keeper: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await create_identity(ada, ada.address, bcc=COPY)
    _, errors = await try_update_identities(keeper, await identity_id(ada), bcc=COPY, name="A")
    assert errors == []
    assert await load_security_actions(environment, ada) == []
    await lose_rights(root, keeper, "role")
    assert (await load_identities_by_address(ada))[ada.address]["bcc"] == COPY


async def test_user_who_clears_one_diversion_does_not_take_over_the_other(
    ada: GraphQLClient, keeper: GraphQLClient, root: GraphQLClient
) -> None:
    await divert_copies(keeper, ada, bcc=COPY, replyTo=COPY[0])
    _, errors = await try_update_identities(ada, await identity_id(ada), replyTo=None)
    assert errors == []
    await lose_rights(root, keeper, "role")
    assert (await load_identities_by_address(ada))[ada.address]["bcc"] == []


@pytest.mark.parametrize("acting", [True, False], ids=["acting", "directly"])
async def test_administrator_who_clears_a_diversion_does_not_take_over_the_other(
    ada: GraphQLClient, keeper: GraphQLClient, root: GraphQLClient, acting: bool
) -> None:
    await divert_copies(keeper, ada, bcc=COPY, replyTo=COPY[0])
    other = root
    if acting:
        payload = await execute_mutation(
            root, "userImpersonate", "token", user={"username": ada.user.username}
        )
        other = replace(ada, secret=payload["token"])
    _, errors = await try_update_identities(other, await identity_id(ada), replyTo=None)
    assert errors == []
    assert await load_security_actions(ada.environment, ada) == ["IDENTITY_BCC_CHANGED"] * 2
    await lose_rights(root, keeper, "role")
    assert (await load_identities_by_address(ada))[ada.address]["bcc"] == []


async def identity_id(user: GraphQLClient) -> str:
    return str((await load_identities_by_address(user))[user.address]["id"])
