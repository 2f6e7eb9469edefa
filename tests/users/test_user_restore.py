"""Restoring deleted users: old data, taken names, and missing addresses and domains."""

import pytest
from sqlalchemy import text

from graph.types import global_ids
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.admin import tasks
from resolvers.context import Context
from resolvers.users import deleted_listing
from resolvers.users import loaders as user_loaders
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_client, make_user
from tests.support.accounts.deleted_users import (
    LATER,
    assert_user_is_unknown,
    delete_users,
    load_deleted_user,
    restore_user,
)
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def add_addresses(client: GraphQLClient, *local_parts: str) -> None:
    query = "SELECT domain_id FROM addresses WHERE user_id = :key"
    ((domain_id,),) = await select_rows(client.environment, query, key=client.user.id)
    now = client.environment.now()
    async with client.environment.write_session(domain_id) as session:
        (await session.get_one(Domain, domain_id)).address_count += len(local_parts)
        for name in local_parts:
            session.add(
                Address(
                    id=client.environment.new_id(),
                    local=name,
                    domain_id=domain_id,
                    display_address=f"{name}@example.org",
                    user_id=client.user.id,
                    created_at=now,
                    updated_at=now,
                )
            )


@pytest.mark.usefixtures("bob")
async def test_restored_user_has_its_old_data(
    root: GraphQLClient, environment: Environment
) -> None:
    await make_client(environment, root.http, "ada", active=False, tags=["x"])
    ada = (
        await user_loaders.find_user_by_name(Context(environment, Viewer(role=Role.ROOT)), "ada")
    ) or 0
    client = GraphQLClient(root.http, environment, ada, "")  # type: ignore[arg-type]
    await add_addresses(client, "lady", "countess")
    totals_before = await select_rows(
        environment, "SELECT user_count, address_count, quota_allocated FROM domains"
    )
    delete_payload, _ = await delete_users(root, client.user.id, purgeAt=LATER)
    await assert_user_is_unknown(environment, root, client.user.id, "ada")
    admin_ctx = Context(environment, Viewer(role=Role.ROOT))
    await creation_create.create_user(
        admin_ctx, NewUser(username="carl", address="l.ady@example.org", password_disabled=True)
    )
    for deleted_ref in (
        {"username": "A.DA"},
        {"address": "a.da+x@Example.org"},
        {"address": "countess@example.org"},
        {"id": delete_payload["deletedIds"][0]},
        {"id": global_ids.encode("DeletedUser", client.user.id)},
    ):
        deleted_user = await load_deleted_user(root, **deleted_ref)
        assert (deleted_user["username"], deleted_user["tags"]) == ("ada", ["x"])
        assert deleted_user["recoverableAddresses"] == ["ada@example.org", "countess@example.org"]
    payload, errors = await restore_user(root, address="countess@example.org")
    assert errors == []
    assert (payload["user"]["username"], payload["user"]["active"]) == ("ada", False)
    assert payload["user"]["address"] == {"address": "ada@example.org"}
    assert payload["recoveredAddresses"] == ["ada@example.org", "countess@example.org"]
    assert payload["lostAddresses"] == ["lady@example.org"]
    assert await load_deleted_user(root, username="ada") is None
    totals_after = await select_rows(
        environment, "SELECT user_count, address_count, quota_allocated FROM domains"
    )
    assert [n - (1, 0, 1 << 30)[i] for i, n in enumerate(totals_after[0])] == list(totals_before[0])
    assert not await tasks.run_next_task(environment)
    state = await root("{ tasks { nodes { state } } }")
    assert state["tasks"]["nodes"] == [{"state": "CANCELLED"}]
    _, (error,) = await restore_user(root, username="ada")
    assert (error["code"], error["message"]) == ("CONFLICT", "The user is not deleted.")
    _, (error,) = await restore_user(root, username="nobody")
    assert error["code"] == "NOT_FOUND"


async def test_recoverable_addresses_that_are_left_out_are_counted(
    root: GraphQLClient, ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleted_listing, "MAX_RECOVERABLE_ADDRESSES", 2)
    await add_addresses(ada, "lady", "countess")
    await delete_users(root, ada.user.id, purgeAt=LATER)
    deleted_user = await load_deleted_user(root, username="ada")
    assert len(deleted_user["recoverableAddresses"]) == 2
    assert deleted_user["recoverableAddressCount"] == 3


async def test_restore_with_taken_name_or_full_domain_is_refused(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await delete_users(root, ada.user.id, purgeAt=LATER)
    other_user = await make_user(environment, "ada")
    _, (error,) = await restore_user(root, id=global_ids.encode("User", ada.user.id))
    assert (error["code"], error["message"]) == ("CONFLICT", "The username already exists.")
    await delete_users(root, other_user.id, purgeAt=LATER)
    assert (await load_deleted_user(root, username="ada"))["userId"] == global_ids.encode(
        "User", other_user.id
    )
    await make_user(environment, "bert")
    async with environment.write_session() as session:
        await (await session.connection()).execute(text("UPDATE domains SET max_users = 1"))
    _, (error,) = await restore_user(root, id=global_ids.encode("User", ada.user.id))
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 1, 1)
    # the user is still deleted
    assert await load_deleted_user(root, id=global_ids.encode("User", ada.user.id))


async def test_restore_into_domain_without_room_for_its_addresses_is_refused(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await add_addresses(ada, "lady", "countess")
    await delete_users(root, ada.user.id, purgeAt=LATER)
    await make_user(environment, "bert")

    async def set_max_addresses(limit: int) -> None:
        async with environment.write_session() as session:
            await (await session.connection()).execute(
                text("UPDATE domains SET max_addresses = :limit"), {"limit": limit}
            )

    await set_max_addresses(3)  # of bert's address and Ada's three
    _, (error,) = await restore_user(root, username="ada")
    assert (error["code"], error["path"], error["limit"], error["used"]) == (
        "LIMIT_REACHED", ["user"], 3, 1,
    )  # fmt: skip
    assert await load_deleted_user(root, username="ada")
    await set_max_addresses(4)
    payload, errors = await restore_user(root, username="ada")
    assert (errors, len(payload["recoveredAddresses"])) == ([], 3)


async def test_user_is_restored_without_main_address_or_domain(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await add_addresses(ada, "lady")
    await delete_users(root, ada.user.id, purgeAt=LATER)
    admin_ctx = Context(environment, Viewer(role=Role.ROOT))
    await creation_create.create_user(
        admin_ctx, NewUser(username="x", address="ada@example.org", password_disabled=True)
    )
    payload, errors = await restore_user(root, username="ada")
    assert errors == []
    assert payload["user"]["address"] == {"address": "lady@example.org"}
    assert payload["lostAddresses"] == ["ada@example.org"]
    eve = await creation_create.create_user(
        admin_ctx, NewUser(username="eve", address="eve@gone.example", password_disabled=True)
    )
    await delete_users(root, eve.id, purgeAt=LATER)
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(text("DELETE FROM domains WHERE name = 'gone.example'"))
    payload, errors = await restore_user(root, username="eve")
    assert (errors, payload["user"]["domain"], payload["lostAddresses"]) == (
        [],
        None,
        ["eve@gone.example"],
    )
