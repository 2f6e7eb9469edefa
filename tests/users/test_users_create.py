"""Many accounts at once: all or none, errors by index; and refusals that cost no hash."""

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
from resolvers.context import Context, Viewer
from resolvers.users.creation import bulk_create
from resolvers.users.creation.create import NewUser
from tests.conftest import Client
from tests.support.accounts.user_operations import chief, create, run, signs_in
from tests.support.operations.domain_operations import set_domain_columns
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import rows
from tests.support.stores.row_counts import user_table_row_counts

CRYPT = "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"  # of "secret"
SLOW = "$pbkdf2-sha256$i=2000000$c2FsdA$VawEblbjCJ/sFpHCJUS2BflBhSFt3gRl5oudV8INrLw"
PAYLOAD = "userCount users { id username hasPasswordSet domain { name userCount } }"
pytestmark = pytest.mark.usefixtures("examined")


def hashed(name: str, **more: Any) -> dict[str, Any]:
    return {"address": name, "password": CRYPT, "hashedPassword": True, **more}


def cpu_time() -> float:
    """Seconds of CPU of this process, whose threads hash, and of the processes that hash."""
    pids = [process.pid for process in multiprocessing.active_children()]
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in stats)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


async def create_all(client: Client, *users: dict[str, Any], **more: Any) -> Any:
    return await run(client, "usersCreate", PAYLOAD, users=list(users), **more)


async def test_accounts_are_created_in_the_order_of_the_input(root: Client) -> None:
    names = [f"n{nth}@{'ab'[nth % 2]}.example" for nth in range(20)]
    await create(root, address="x@a.example")
    await create(root, address="x@b.example")
    done = await create_all(root, *map(hashed, names), {"username": "nobody", "emptyAddress": True,
                                                        "passwordDisabled": True})  # fmt: skip
    assert (done["errors"], done["userCount"]) == ([], 21)
    assert [user["username"] for user in done["users"]] == [*names, "nobody"]
    assert {user["domain"]["name"]: user["domain"]["userCount"] for user in done["users"][:-1]} == {
        "a.example": 11,
        "b.example": 11,
    }
    assert await signs_in(root.world, names[7], "secret")
    assert await signs_in(root.world, names[7], "wrong") is None
    folders = "SELECT count(*) FROM mailboxes WHERE user_id = :key"
    key = global_ids.decode("User", done["users"][-1]["id"])
    assert await rows(root.world, folders, key=key) == [(5,)]
    noted = "SELECT count(*) FROM admin_log WHERE mutation = 'usersCreate'"
    assert await rows(root.world, noted) == [(21,)]


@pytest.mark.usefixtures("ada")
async def test_each_refusal_has_the_index_of_its_account_and_nothing_is_stored(
    root: Client,
) -> None:
    before = await user_table_row_counts(root.world)
    done = await create_all(
        root,
        hashed("one@example.org"),
        hashed("ada@example.org"),
        hashed("one@example.org", username="other"),
        hashed("two@example.org", spamLevel=101, tags=["fine", "a\x1f"]),
        hashed("two@example.org", administers=[{"name": "none.example"}], role="DOMAIN_ADMIN"),
        hashed("two@example.org"),
    )
    assert (done["users"], done["userCount"]) == ([], 0)
    assert [(one["code"], one["index"], one["path"]) for one in done["errors"]] == [
        ("CONFLICT", 1, ["users", "1", "address"]),
        ("CONFLICT", 2, ["users", "2", "address"]),
        ("VALIDATION", 3, ["users", "3", "spamLevel"]),
        ("VALIDATION", 3, ["users", "3", "tags", "1"]),
        ("NOT_FOUND", 4, ["users", "4", "administers", "0"]),
    ]
    assert await user_table_row_counts(root.world) == before


@pytest.mark.usefixtures("ada")
async def test_a_domain_takes_no_more_than_it_may(root: Client) -> None:
    await set_domain_columns(root.world, max_users=3)
    boss = await chief(root)  # the second
    before = await user_table_row_counts(root.world)
    done = await create_all(boss, *(hashed(f"n{nth}@example.org") for nth in range(3)))
    assert [(one["code"], one["index"], one["limit"]) for one in done["errors"]] == [
        ("LIMIT_REACHED", 1, 3),
        ("LIMIT_REACHED", 2, 3),
    ]
    assert await user_table_row_counts(root.world) == before
    assert (await create_all(boss, hashed("n0@example.org")))["errors"] == []


@pytest.mark.usefixtures("ada")
async def test_a_call_has_a_limit_of_accounts_and_of_passwords_to_hash(root: Client) -> None:
    many = [hashed(f"n{nth}@example.org") for nth in range(bulk_create.MAX_USERS + 1)]
    plain = [
        {"address": f"p{nth}@example.org", "password": "correct horse"}
        for nth in range(bulk_create.MAX_PASSWORDS + 1)
    ]
    for users in ([], many, plain):
        (error,) = (await create_all(root, *users))["errors"]
        assert (error["code"], error["path"], error["constraint"]) == (
            "VALIDATION", ["users"], "max",
        )  # fmt: skip
    done = await create_all(root, *plain[:2], options={"validateOnly": True})
    assert (done["errors"], done["userCount"]) == ([], 2)
    assert (await create_all(root, *plain[:2]))["errors"] == []
    assert await signs_in(root.world, "p1@example.org", "correct horse")


@pytest.mark.usefixtures("ada")
async def test_an_account_without_room_is_refused_before_its_password_is_hashed(
    root: Client,
) -> None:
    """Five refusals take less CPU than one account, nearly all of whose time is the hash."""
    set_options(root.world, argon2_memory=1 << 14, argon2_time=60)
    before = cpu_time()
    assert (await create(root, address="room@example.org"))[1] == []
    one = cpu_time() - before
    await set_domain_columns(root.world, max_users=1)
    before = cpu_time()
    for wrong, code in (
        ({"address": "eve@example.org"}, "LIMIT_REACHED"),
        ({"username": "ada", "address": "eve@example.org"}, "CONFLICT"),
        ({"address": "ada@example.org", "username": "eve"}, "CONFLICT"),
        ({"address": "eve@none.example", "administers": [{"name": "none.example"}],
          "role": "DOMAIN_ADMIN"}, "NOT_FOUND"),
        ({"address": "eve@example.org", "targets": ["x"]}, "VALIDATION"),
    ):  # fmt: skip
        user, errors = await create(root, **wrong)
        assert (user, errors[0]["code"]) == (None, code)
    assert cpu_time() - before < one


async def test_an_imported_hash_is_not_tried(root: Client) -> None:
    """A comparison with this hash takes about a second: ten imports must take less than three."""
    begun = time.process_time()
    foreign_hashes.verify_foreign_hash("secret", SLOW)
    one = time.process_time() - begun
    ctx = Context(root.world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
    policy = password_policy.policy_of_domain(root.world, None)
    begun = time.monotonic()
    for _ in range(10):
        new = NewPassword(SLOW, is_hash=True)
        assert (
            await new_passwords.validate_new_password(ctx, new, policy)
        ).password_or_hash == SLOW
    assert time.monotonic() - begun < 3 * one


async def test_of_two_lists_with_a_name_in_common_one_is_stored(root: Client) -> None:
    import asyncio

    ctx = Context(root.world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
    lists = [
        [NewUser(address=f"{name}@example.org", password_disabled=True) for name in names]
        for names in (("a", "b"), ("c", "b"))
    ]
    await create(root, address="x@example.org")
    made = await asyncio.gather(
        *(bulk_create.create_users(ctx.fresh_copy(), news) for news in lists),
        return_exceptions=True,
    )
    assert sorted(isinstance(one, Conflict) for one in made) == [False, True]
    assert await rows(root.world, "SELECT count(*) FROM users") == [(3,)]
