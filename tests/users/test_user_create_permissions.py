"""Accounts: making them, listing them, and who sees them."""

from typing import Any

import pytest

from graph.types import global_ids
from models.domains.tables import AliasDomain
from models.errors import Forbidden, NotFound
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.users.creation import create as creation_create
from resolvers.users.creation import insert
from resolvers.users.creation.create import NewUser
from tests.conftest import Client, make_user
from tests.support.accounts.domain_admins import domain_admin_context
from tests.support.operations.domain_operations import set_domain_columns
from tests.support.stores.counter_check import journal, rows
from tests.support.stores.row_counts import user_table_row_counts

CREATE = """
mutation ($input: UserCreateInput!) {
  userCreate(input: $input) {
    user {
      id username name role tags language metaData internalData activated hasPasswordSet
      disabled suspended requirePasswordChange domain { name } address { address main }
      limits { quota { allowed used } }
    }
    errors {
      code path index
      ... on ValidationError { constraint }
      ... on LimitReachedError { limit used }
      ... on ForbiddenError { requires }
    }
  }
}
"""
GOOD = {"address": "eve@new.example", "password": "correct horse"}
pytestmark = pytest.mark.usefixtures("counted")


async def create(client: Client, **given: Any) -> tuple[Any, list[Any]]:
    answer = (await client(CREATE, input={**GOOD, **given}))["userCreate"]
    return answer["user"], answer["errors"]


async def test_an_account_has_what_was_asked_for(root: Client) -> None:
    user, errors = await create(
        root,
        username="Eve.O_1",
        name="Eve Ö.",
        address="E.ve@XN--BCHER-KVA.example",
        role="ADMIN",
        requirePasswordChange=True,
        suspended=True,
        tags=["b", "A ", "a", "B"],
        metaData={"a": [1]},
        internalData={"b": None},
        language="de",
        quota="3 GiB",
    )
    assert errors == []
    key = user.pop("id")
    assert global_ids.decode("User", key)
    assert user == {
        "username": "eve.o_1",
        "name": "Eve Ö.",
        "role": "ADMIN",
        "tags": ["A", "b"],
        "language": "de",
        "metaData": {"a": [1]},
        "internalData": {"b": None},
        "activated": False,
        "hasPasswordSet": True,
        "disabled": False,
        "suspended": True,
        "requirePasswordChange": True,
        "domain": {"name": "bücher.example"},
        "address": {"address": "E.ve@bücher.example", "main": True},
        "limits": {"quota": {"allowed": 3 << 30, "used": 0}},
    }


async def test_an_account_needs_little(root: Client) -> None:
    user, errors = await create(root)
    assert errors == []
    assert (user["username"], user["role"], user["activated"]) == ("eve@new.example", "USER", True)
    assert user["limits"]["quota"]["allowed"] == 1 << 30
    answer = await root(CREATE, input={"username": "dan@new.example", "passwordDisabled": True})
    dan = answer["userCreate"]["user"]
    assert (dan["address"]["address"], dan["hasPasswordSet"]) == ("dan@new.example", False)


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        ({"username": "ä"}, ("VALIDATION", ["username"], "pattern")),
        ({"username": "a..b"}, ("VALIDATION", ["username"], "pattern")),
        ({"username": "a" * 129}, ("VALIDATION", ["username"], "pattern")),
        ({"address": "eve"}, ("VALIDATION", ["address"], "required")),
        ({"address": "e ve@new.example"}, ("VALIDATION", ["address"], "address")),
        ({"address": "eve@-new.example"}, ("VALIDATION", ["address"], "domain")),
        ({"address": "*@new.example"}, ("VALIDATION", ["address"], "pattern")),
        ({"address": "eve+x@new.example"}, ("VALIDATION", ["address"], "pattern")),
        ({"address": None, "username": "eve"}, ("VALIDATION", ["address"], "required")),
        ({"password": None}, ("VALIDATION", ["password"], "required")),
        ({"password": "x" * 257}, ("VALIDATION", ["password"], "max")),
        ({"passwordDisabled": True}, ("VALIDATION", ["password"], "exclusive")),
        ({"role": "PUBLIC"}, ("VALIDATION", ["role"], "enum")),
        ({"tags": ["a", " "]}, ("VALIDATION", ["tags"], "length")),
        ({"tags": ["a" * 129]}, ("VALIDATION", ["tags"], "length")),
        ({"metaData": [1]}, ("VALIDATION", ["metaData"], "object")),
        ({"internalData": "x"}, ("VALIDATION", ["internalData"], "object")),
        ({"mailboxes": {"sent": "Trash"}}, ("VALIDATION", ["mailboxes"], "unique")),
        ({"mailboxes": {"sent": "inbox"}}, ("VALIDATION", ["mailboxes"], "unique")),
        ({"mailboxes": {"sent": "a//b"}}, ("VALIDATION", ["mailboxes", "sent"], "pattern")),
        ({"username": "a.d.a"}, ("CONFLICT", ["username"], None)),
        ({"username": "ADA"}, ("CONFLICT", ["username"], None)),
        ({"address": "a.Da@example.org"}, ("CONFLICT", ["address"], None)),
        ({"address": "eve@alias.example"}, ("CONFLICT", ["address"], None)),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_and_leaves_nothing(
    root: Client, ada: Client, wrong: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    assert ada.user.domain_id
    row = AliasDomain(
        id=1, alias="alias.example", domain_id=ada.user.domain_id, created_at=root.world.now()
    )
    async with root.world.write_session() as session:
        session.add(row)
    before = await user_table_row_counts(root.world)
    user, (error,) = await create(root, **wrong)
    assert user is None
    assert (error["code"], error["path"], error.get("constraint")) == refusal
    assert await user_table_row_counts(root.world) == before


async def test_a_dry_run_and_a_failure_in_the_middle_leave_nothing(
    root: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await user_table_row_counts(world)
    tried, errors = await create(root, options={"validateOnly": True})
    assert (tried is not None, errors) == (True, [])
    assert await user_table_row_counts(world) == before
    monkeypatch.setattr(insert, "_address_row", None)  # as if our own code broke
    answer = await root.raw(CREATE, input=GOOD)
    assert answer["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    assert await user_table_row_counts(world) == before


async def test_nobody_makes_an_account_above_his_own(ada: Client) -> None:
    ctx = await domain_admin_context(ada)
    with pytest.raises(Forbidden) as refused:
        await creation_create.create_user(
            ctx, NewUser(address="eve@example.org", password_disabled=True, role=Role.ADMIN)
        )
    assert (refused.value.path, refused.value.requires) == (["role"], "ADMIN")
    answer = await ada(CREATE, input=GOOD)
    assert answer["userCreate"]["errors"][0]["requires"] == "DOMAIN_ADMIN"


async def test_an_admin_makes_accounts_in_his_domains_only(ada: Client, world: Environment) -> None:
    await make_user(
        world,
        "far",
    )
    ctx = await domain_admin_context(ada)
    made = await creation_create.create_user(
        ctx, NewUser(address="eve@example.org", password_disabled=True)
    )
    assert made.domain_id == ada.user.domain_id
    with pytest.raises(NotFound) as refused:
        await creation_create.create_user(
            ctx, NewUser(address="eve@unknown.example", password_disabled=True)
        )
    assert refused.value.path == ["address"]
    with pytest.raises(Forbidden):
        await creation_create.create_user(
            ctx, NewUser(username="x", empty_address=True, password_disabled=True)
        )
    nobodys = await domain_admin_context(ada, administers=())
    with pytest.raises(NotFound):
        await creation_create.create_user(
            nobodys, NewUser(address="dan@example.org", password_disabled=True)
        )


async def test_unlimited_storage_is_given_by_permission(ada: Client) -> None:
    new = NewUser(address="eve@example.org", password_disabled=True, quota=0)
    with pytest.raises(Forbidden) as refused:
        await creation_create.create_user(await domain_admin_context(ada), new)
    assert (refused.value.path, refused.value.requires) == (["quota"], "UNLIMITED_QUOTA")
    may = await domain_admin_context(ada, AdminPermission.UNLIMITED_QUOTA)
    assert (await creation_create.create_user(may, new)).quota == 0


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize(
    ("limits", "given", "refusal"),
    [
        ({"max_users": 1}, {}, {"path": ["address"], "limit": 1, "used": 1}),
        ({"max_user_quota": 10}, {"quota": 11}, {"path": ["quota"], "limit": 10, "used": 11}),
        ({"max_user_quota": 10}, {"quota": 0}, {"path": ["quota"], "limit": 10, "used": 0}),
        ({"max_user_quota": 10}, {}, {"path": ["quota"], "limit": 10, "used": 1 << 30}),
        ({"max_user_quota": 10}, {"quota": 10}, None),
        ({"max_user_quota": 10, "default_user_quota": 9}, {}, None),
        ({"quota": (1 << 30) + 5}, {"quota": 6},
         {"path": ["quota"], "limit": (1 << 30) + 5, "used": 1 << 30}),
        ({"quota": (1 << 30) + 5}, {"quota": 0},
         {"path": ["quota"], "limit": (1 << 30) + 5, "used": 1 << 30}),
        ({"quota": (1 << 30) + 5}, {"quota": 5}, None),
        ({"max_users": 2}, {}, None),
    ],
)  # fmt: skip
async def test_a_domain_has_limits(
    root: Client, limits: dict[str, int], given: dict[str, Any], refusal: Any
) -> None:
    plain = {"default_user_quota": None, "max_users": 0, "max_user_quota": 0, "quota": 0}
    await set_domain_columns(root.world, **limits)
    user, errors = await create(root, address="eve@example.org", **given)
    if refusal is None:
        assert errors == []
    else:
        assert [{"code": "LIMIT_REACHED", "index": None, **refusal}] == errors
        assert user is None
    await set_domain_columns(root.world, **plain, quota_allocated=await allocated(root.world))


async def allocated(world: Environment) -> int:
    """What the limits of a test, which come and go, make of the sum."""
    ((total,),) = await rows(world, "SELECT sum(coalesce(quota, 1073741824)) FROM users")
    return int(total)


@pytest.mark.usefixtures("ada")
async def test_a_full_domain_counts_the_new_one(root: Client) -> None:
    await set_domain_columns(root.world, max_users=2)
    assert (await create(root, address="eve@example.org"))[1] == []
    _, (error,) = await create(root, address="dan@example.org")
    assert (error["limit"], error["used"]) == (2, 2)


FOLDERS = "{ viewer { user { mailboxes { path specialUse subscribed uidValidity } } } }"


@pytest.mark.parametrize(
    ("names", "paths"),
    [
        ({}, {"INBOX": "INBOX", "DRAFTS": "Drafts", "JUNK": "Junk", "SENT": "Sent",
              "TRASH": "Trash"}),
        ({"sent": "Gesendet", "archive": "Ablage", "junk": ""},
         {"INBOX": "INBOX", "DRAFTS": "Drafts", "JUNK": "Junk", "SENT": "Gesendet",
          "TRASH": "Trash", "ARCHIVE": "Ablage"}),
        ({"sent": "inbox/Sent", "trash": "Alt/Weg/"},
         {"INBOX": "INBOX", "DRAFTS": "Drafts", "JUNK": "Junk", "SENT": "INBOX/Sent",
          "TRASH": "Alt/Weg", None: "Alt"}),
    ],
)  # fmt: skip
async def test_an_account_begins_with_its_folders(
    root: Client, names: dict[str, str], paths: dict[str, str]
) -> None:
    user, errors = await create(root, mailboxes=names)
    assert errors == []
    key = global_ids.decode("User", user["id"])
    sql = "SELECT special_use, path FROM mailboxes WHERE user_id = :key"
    found = await rows(root.world, sql, key=key)
    assert dict(found) == paths
    assert len(found) == len(paths)
    validities = await rows(root.world, "SELECT DISTINCT uid_validity FROM mailboxes")
    assert len(validities) == len(paths)
    kinds = [kind for kind, _ in await journal(root.world, key)]
    assert kinds == [ChangeKind.ADDRESS_CHANGED, ChangeKind.MAILBOX_CREATED]


async def test_a_call_repeated_with_its_key_makes_one_account(root: Client) -> None:
    first, _ = await create(root, options={"idempotencyKey": "k"})
    again, _ = await create(root, options={"idempotencyKey": "k"})
    assert first == again
