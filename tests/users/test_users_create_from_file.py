"""Accounts from a file: what is read of it, what is refused by line, and going on after a crash."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from graph.types import global_ids
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from resolvers.users.creation import file_create
from tests.conftest import Client, make_client
from tests.support.accounts.import_runs import Crashed
from tests.support.accounts.user_operations import chief, create, run, signs_in
from tests.support.stores.counter_check import rows
from tests.support.stores.other_processes import taken_for_dead

CRYPT = "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"  # of "secret"
TASK = "task { id kind state done total result error }"
RESULT = "query ($id: ID!) { task(id: $id) { state done total result error } }"
pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
async def boss(root: Client) -> Client:
    """An ADMIN with an account."""
    return await make_client(root.world, root.http, "boss", role=Role.ADMIN)


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in records)


def numbered(*numbers: int) -> bytes:
    return lines(
        *(
            {"address": f"n{nth}@example.org", "password": CRYPT, "hashedPassword": True}
            for nth in numbers
        )
    )


async def sent(client: Client, content: bytes) -> str:
    answer = await client.http.post("/rest/uploads", content=content, headers=client.headers)
    return str(answer.json()["id"])


async def begin(client: Client, content: bytes, **more: Any) -> Any:
    return await run(client, "usersCreateFromFile", TASK, file=await sent(client, content), **more)


async def finished(client: Client, content: bytes, **more: Any) -> Any:
    done = await begin(client, content, **more)
    assert done["errors"] == []
    while await tasks.run_next_task(client.world):
        pass
    return (await client(RESULT, id=done["task"]["id"]))["task"]


async def test_a_csv_file_has_the_fields_of_the_schema(boss: Client) -> None:
    content = (
        "\ufeffaddress,password,hashedPassword,name,tags,quota,role,administers,"
        "adminPermissions,retention,metaData,mailboxes.sent,smtpAllowedNetworks,spamLevel\r\n"
        f'eve@example.org,{CRYPT},true,"Eve, Ms.",b; a,3 GiB,domain_admin,example.org,'
        'LOGIN_AS;FILTERS,P10D,"{""a"": [1]}",Gesendet,"[""192.0.2.7/24""]",7\r\n'
        "\r\n"
        f"dan@example.org,{CRYPT},yes,,,,,,,,,,,\r\n"
    )
    task = await finished(boss, content.encode())
    assert task == {
        "state": "SUCCEEDED",
        "done": 2,
        "total": 2,
        "error": None,
        "result": {"changed": 2, "created": 2, "refused": 0, "errors": [], "warnings": []},
    }
    document = """{ user(by: {username: "eve@example.org"}) { name tags role retention metaData
      administers { name } adminPermissions smtpAllowedNetworks spam { level }
      limits { quota { allowed } } mailboxes { path } } }"""
    user = (await boss(document))["user"]
    assert user.pop("mailboxes").count({"path": "Gesendet"}) == 1
    assert user == {
        "name": "Eve, Ms.",
        "tags": ["a", "b"],
        "role": "DOMAIN_ADMIN",
        "retention": "P10D",
        "metaData": {"a": [1]},
        "administers": [{"name": "example.org"}],
        "adminPermissions": ["FILTERS", "LOGIN_AS"],
        "smtpAllowedNetworks": ["192.0.2.0/24"],
        "spam": {"level": 7},
        "limits": {"quota": {"allowed": 3 << 30}},
    }
    assert await signs_in(boss.world, "dan@example.org", "secret")
    noted = (
        "SELECT target_kind, count(*) FROM admin_log WHERE mutation = :name GROUP BY 1 ORDER BY 1"
    )
    assert await rows(boss.world, noted, name="usersCreateFromFile") == [("Task", 1), ("User", 2)]


async def test_what_is_refused_is_told_by_line_and_the_rest_is_created(boss: Client) -> None:
    good = numbered(1)
    content = good + b"\n".join(
        [
            b"{no json",
            b"[]",
            b"",
            lines({"address": "boss@example.org", "passwordDisabled": True}).strip(),
            lines({"address": "n1@example.org", "username": "x", "passwordDisabled": True}).strip(),
            lines({"address": "n2@example.org", "quota": "much", "flags": 1}).strip(),
            lines({"address": "n3@example.org", "password": "no hash", "hashedPassword": True,
                   "spamLevel": 101}).strip(),
            lines({"address": "n4@example.org", "administers": ["none.example"]}).strip(),
            lines({"address": "n5@example.org", "password": "correct horse"}).strip(),
        ]
    )  # fmt: skip
    task = await finished(boss, content)
    assert (task["state"], task["done"], task["total"]) == ("SUCCEEDED", 9, 9)
    result = task["result"]
    assert (result["created"], result["refused"]) == (2, 7)
    assert [(one["line"], one["code"], one["path"]) for one in result["errors"]] == [
        (2, "VALIDATION", []),
        (3, "VALIDATION", []),
        (5, "CONFLICT", ["address"]),
        (6, "CONFLICT", ["address"]),
        (7, "VALIDATION", ["flags"]),
        (7, "VALIDATION", ["password"]),
        (7, "VALIDATION", ["quota"]),
        (8, "VALIDATION", ["password"]),
        (8, "VALIDATION", ["spamLevel"]),
        (9, "NOT_FOUND", ["administers"]),
    ]
    assert "no hash" not in str(result)
    assert await signs_in(boss.world, "n5@example.org", "correct horse")
    assert await rows(boss.world, "SELECT count(*) FROM uploads") == [(0,)]
    assert await rows(boss.world, "SELECT count(*) FROM import_archives") == [(0,)]


@pytest.mark.parametrize(
    ("content", "constraint"),
    [
        (b"", "columns"),
        (b"address,pasword\nx@example.org,y\n", "columns"),
        (b"address,address\nx@example.org,y\n", "columns"),
    ],
)
async def test_a_file_without_known_columns_is_refused_at_once(
    boss: Client, content: bytes, constraint: str
) -> None:
    done = await begin(boss, content, format="CSV")
    (error,) = done["errors"]
    assert (done["task"], error["code"], error["path"], error["constraint"]) == (
        None, "VALIDATION", ["file"], constraint,
    )  # fmt: skip
    assert "NOT_FOUND" in str(await run(boss, "usersCreateFromFile", TASK,
                                        file=str(global_ids.encode("Upload", 7))))  # fmt: skip


async def test_a_damaged_file_fails_where_it_is_damaged(boss: Client) -> None:
    task = await finished(boss, b"address,passwordDisabled\na@example.org,true\n\xff,true\n")
    assert (task["state"], task["error"]) == ("FAILED", "the file is not UTF-8")


async def test_after_a_crash_it_goes_on_and_creates_each_account_once(
    boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_create, "CHUNK_USERS", 3)  # a small one, so that there are several
    world = boss.world
    done = await begin(boss, numbered(*range(10)))

    def fail(place: str) -> None:
        if place == "users stored" and next(left) == 0:
            raise Crashed

    left = iter((2, 1, 0))
    object.__setattr__(world, "reach_fault_point", fail)
    with pytest.raises(Crashed):
        await tasks.run_next_task(world)
    assert await rows(world, "SELECT count(*) FROM users") == [(1 + 2 * 3,)]
    object.__setattr__(world, "reach_fault_point", lambda _: None)
    await taken_for_dead(world)
    assert await tasks.run_next_task(world)
    task = (await boss(RESULT, id=done["task"]["id"]))["task"]
    assert (task["state"], task["done"], task["total"]) == ("SUCCEEDED", 10, 10)
    assert task["result"]["created"] == 10
    assert await rows(world, "SELECT count(*) FROM users") == [(11,)]


@pytest.mark.usefixtures("boss")
async def test_a_domain_admin_creates_accounts_in_its_domains(root: Client) -> None:
    chief_ = await chief(root, AdminPermission.LOGIN_AS)
    await create(root, address="x@elsewhere.example")
    content = numbered(1) + lines(
        {"address": "y@elsewhere.example", "passwordDisabled": True},
        {"address": "z@example.org", "passwordDisabled": True, "role": "ADMIN"},
        {"address": "q@example.org", "passwordDisabled": True, "quota": 0},
    )
    task = await finished(chief_, content)
    told = task["result"]["errors"]
    assert [(one["line"], one["code"]) for one in told] == [
        (2, "NOT_FOUND"), (3, "FORBIDDEN"), (4, "FORBIDDEN"),
    ]  # fmt: skip


async def test_who_lost_the_role_creates_no_more_accounts(root: Client, boss: Client) -> None:
    done = await begin(boss, numbered(1))
    async with root.world.write_session() as session:
        await (await session.connection()).execute(
            text("UPDATE users SET role = 'USER' WHERE id = :key"), {"key": boss.user.id}
        )
    assert await tasks.run_next_task(root.world)
    task = (await root(RESULT, id=done["task"]["id"]))["task"]
    assert (task["state"], task["done"]) == ("FAILED", 0)
    assert "may no longer create accounts" in task["error"]


async def test_a_user_starts_no_such_task(ada: Client) -> None:
    done = await begin(ada, numbered(1))
    assert [one["code"] for one in done["errors"]] == ["FORBIDDEN"]
