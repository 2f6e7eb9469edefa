"""Creating many users at once: all or nothing, errors by index, and no hash for refused users."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from models.errors import Conflict
from models.users.roles import Role, Scope
from resolvers.auth.passwords import foreign_hashes, new_passwords, password_policy
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.context import Context
from resolvers.users.creation import bulk_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import (
    execute_mutation,
    make_admin_of_domain,
    try_create_user,
    try_sign_in,
)
from tests.support.operations.domain_operations import set_domain_columns
from tests.support.operations.quarantine_operations import set_options
from tests.support.schema.error_paths import item_index
from tests.support.stores.counter_check import select_rows
from tests.support.stores.row_counts import count_user_table_rows

MD5_CRYPT_HASH = "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"  # hash of "secret"
SLOW_HASH = "$pbkdf2-sha256$i=2000000$c2FsdA$VawEblbjCJ/sFpHCJUS2BflBhSFt3gRl5oudV8INrLw"
PAYLOAD_FIELDS = "userCount users { id username hasPassword domain { name userCount } }"
pytestmark = pytest.mark.usefixtures("verify_consistency")


def user_with_hash(address: str, **extra: Any) -> dict[str, Any]:
    return {"address": address, "password": MD5_CRYPT_HASH, "hashedPassword": True, **extra}


def cpu_time() -> float:
    """CPU seconds of this process, which hashes in threads, and of its hash processes."""
    pids = [process.pid for process in multiprocessing.active_children()]
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in stats)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


async def create_all(client: GraphQLClient, *users: dict[str, Any], **extra: Any) -> Any:
    return await execute_mutation(client, "usersCreate", PAYLOAD_FIELDS, users=list(users), **extra)


async def test_users_are_created_in_input_order(root: GraphQLClient) -> None:
    names = [f"n{number}@{'ab'[number % 2]}.example" for number in range(20)]
    await try_create_user(root, address="x@a.example")
    await try_create_user(root, address="x@b.example")
    without_address = {"username": "nobody", "emptyAddress": True, "passwordDisabled": True}
    payload = await create_all(root, *map(user_with_hash, names), without_address)
    assert (payload["errors"], payload["userCount"]) == ([], 21)
    assert [user["username"] for user in payload["users"]] == [*names, "nobody"]
    assert {
        user["domain"]["name"]: user["domain"]["userCount"] for user in payload["users"][:-1]
    } == {
        "a.example": 11,
        "b.example": 11,
    }
    assert await try_sign_in(root.environment, names[7], "secret")
    assert await try_sign_in(root.environment, names[7], "wrong") is None
    mailbox_count_query = "SELECT count(*) FROM mailboxes WHERE user_id = :key"
    user_id = global_ids.decode("User", payload["users"][-1]["id"])
    assert await select_rows(root.environment, mailbox_count_query, key=user_id) == [(5,)]
    log_query = "SELECT count(*) FROM audit_log WHERE mutation = 'usersCreate'"
    assert await select_rows(root.environment, log_query) == [(21,)]


@pytest.mark.usefixtures("ada")
async def test_errors_have_the_index_of_the_user_and_nothing_is_stored(
    root: GraphQLClient,
) -> None:
    counts_before = await count_user_table_rows(root.environment)
    payload = await create_all(
        root,
        user_with_hash("one@example.org"),
        user_with_hash("ada@example.org"),
        user_with_hash("one@example.org", username="other"),
        user_with_hash("two@example.org", spam={"level": 101}, tags=["fine", "a\x1f"]),
        user_with_hash(
            "two@example.org", administers=[{"name": "none.example"}], role="DOMAIN_ADMIN"
        ),
        user_with_hash("two@example.org"),
    )
    assert (payload["users"], payload["userCount"]) == ([], 0)
    assert [(error["code"], error["path"]) for error in payload["errors"]] == [
        ("CONFLICT", ["users", "1", "address"]),
        ("CONFLICT", ["users", "2", "address"]),
        ("VALIDATION", ["users", "3", "spam", "level"]),
        ("VALIDATION", ["users", "3", "tags", "1"]),
        ("NOT_FOUND", ["users", "4", "administers", "0"]),
    ]
    assert await count_user_table_rows(root.environment) == counts_before


@pytest.mark.usefixtures("ada")
async def test_users_over_the_domain_limit_are_refused(root: GraphQLClient) -> None:
    await set_domain_columns(root.environment, max_users=3)
    domain_admin = await make_admin_of_domain(root)  # the second user
    counts_before = await count_user_table_rows(root.environment)
    payload = await create_all(
        domain_admin, *(user_with_hash(f"n{number}@example.org") for number in range(3))
    )
    assert [(error["code"], item_index(error), error["limit"]) for error in payload["errors"]] == [
        ("LIMIT_REACHED", 1, 3),
        ("LIMIT_REACHED", 2, 3),
    ]
    assert await count_user_table_rows(root.environment) == counts_before
    assert (await create_all(domain_admin, user_with_hash("n0@example.org")))["errors"] == []


@pytest.mark.usefixtures("ada")
async def test_number_of_users_and_passwords_per_call_is_limited(root: GraphQLClient) -> None:
    too_many_users = [
        user_with_hash(f"n{number}@example.org") for number in range(bulk_create.MAX_USERS + 1)
    ]
    too_many_passwords = [
        {"address": f"p{number}@example.org", "password": "correct horse"}
        for number in range(bulk_create.MAX_PASSWORDS + 1)
    ]
    for users in ([], too_many_users, too_many_passwords):
        (error,) = (await create_all(root, *users))["errors"]
        assert (error["code"], error["path"], error["constraint"]) == (
            "VALIDATION", ["users"], "MAX",
        )  # fmt: skip
    payload = await create_all(root, *too_many_passwords[:2], options={"validateOnly": True})
    assert (payload["errors"], payload["userCount"]) == ([], 2)
    assert (await create_all(root, *too_many_passwords[:2]))["errors"] == []
    assert await try_sign_in(root.environment, "p1@example.org", "correct horse")


@pytest.mark.usefixtures("ada")
async def test_refused_user_costs_no_password_hash(
    root: GraphQLClient,
) -> None:
    """Five refusals take less CPU time than one creation, most of which is the hash."""
    set_options(root.environment, argon2_memory_cost=1 << 14, argon2_time_cost=60)
    started_at = cpu_time()
    assert (await try_create_user(root, address="room@example.org"))[1] == []
    creation_time = cpu_time() - started_at
    await set_domain_columns(root.environment, max_users=1)
    started_at = cpu_time()
    for invalid_input, code in (
        ({"address": "eve@example.org"}, "LIMIT_REACHED"),
        ({"username": "ada", "address": "eve@example.org"}, "CONFLICT"),
        ({"address": "ada@example.org", "username": "eve"}, "CONFLICT"),
        ({"address": "eve@none.example", "administers": [{"name": "none.example"}],
          "role": "DOMAIN_ADMIN"}, "NOT_FOUND"),
        ({"address": "eve@example.org", "forwardTo": ["x"]}, "VALIDATION"),
    ):  # fmt: skip
        user, errors = await try_create_user(root, **invalid_input)
        assert (user, errors[0]["code"]) == (None, code)
    assert cpu_time() - started_at < creation_time


async def test_imported_hash_is_not_computed(root: GraphQLClient) -> None:
    """A comparison with this hash takes about a second. Ten imports take less than three."""
    started_at = time.process_time()
    foreign_hashes.verify_foreign_hash("secret", SLOW_HASH)
    comparison_time = time.process_time() - started_at
    ctx = Context(root.environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
    policy = password_policy.policy_of_domain(root.environment, None)
    started_at = cpu_time()
    for _ in range(10):
        new_password = NewPassword(SLOW_HASH, is_hash=True)
        assert (
            await new_passwords.validate_new_password(ctx, new_password, policy)
        ).password_or_hash == SLOW_HASH
    assert cpu_time() - started_at < 3 * comparison_time


async def test_one_of_concurrent_lists_with_a_common_name_is_stored(root: GraphQLClient) -> None:
    import asyncio

    ctx = Context(root.environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
    lists = [
        [NewUser(address=f"{name}@example.org", password_disabled=True) for name in names]
        for names in (("a", "b"), ("c", "b"))
    ]
    await try_create_user(root, address="x@example.org")
    results = await asyncio.gather(
        *(bulk_create.create_users(ctx.fresh_copy(), new_users) for new_users in lists),
        return_exceptions=True,
    )
    assert sorted(isinstance(result, Conflict) for result in results) == [False, True]
    assert await select_rows(root.environment, "SELECT count(*) FROM users") == [(3,)]
