"""Creating users: values, permissions, domain limits and mailboxes."""

from typing import Any

import pytest

from graph.types import global_ids
from models.domains.tables import DomainAlias
from models.errors import Forbidden, NotFound
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.users.creation import create as creation_create
from resolvers.users.creation import insert
from resolvers.users.creation.create import NewUser
from resolvers.users.limit_values import Unlimited
from tests.conftest import GraphQLClient, make_user
from tests.support.accounts.domain_admins import domain_admin_context
from tests.support.case_loop import each_case
from tests.support.operations.domain_operations import set_domain_columns
from tests.support.stores.counter_check import load_journal_entries, select_rows
from tests.support.stores.row_counts import count_user_table_rows

USER_CREATE = """
mutation ($input: UserCreateInput!) {
  userCreate(input: $input) {
    user {
      id username name role tags language metadata privateMetadata activated hasPassword
      active suspended passwordChangeRequired domain { name } address { address main }
      limits { quota { limit used } }
    }
    errors {
      code path ... on ValidationError { constraint }
      ... on LimitReachedError { limit used }
      ... on ForbiddenError { requires }
    }
  }
}
"""
VALID_INPUT = {"address": "eve@new.example", "password": "correct horse"}
pytestmark = pytest.mark.usefixtures("verify_counters")


async def create(client: GraphQLClient, **arguments: Any) -> tuple[Any, list[Any]]:
    payload = (await client(USER_CREATE, input={**VALID_INPUT, **arguments}))["userCreate"]
    return payload["user"], payload["errors"]


async def test_created_user_has_the_given_values(root: GraphQLClient) -> None:
    user, errors = await create(
        root,
        username="Eve.O_1",
        name="Eve Ö.",
        address="E.ve@XN--BCHER-KVA.example",
        role="ADMIN",
        passwordChangeRequired=True,
        suspended=True,
        tags=["b", "A ", "a", "B"],
        metadata={"a": [1]},
        privateMetadata={"b": None},
        language="de",
        quota="3 GiB",
    )
    assert errors == []
    global_id = user.pop("id")
    assert global_ids.decode("User", global_id)
    assert user == {
        "username": "eve.o_1",
        "name": "Eve Ö.",
        "role": "ADMIN",
        "tags": ["A", "b"],
        "language": "de",
        "metadata": {"a": [1]},
        "privateMetadata": {"b": None},
        "activated": False,
        "hasPassword": True,
        "active": True,
        "suspended": True,
        "passwordChangeRequired": True,
        "domain": {"name": "bücher.example"},
        "address": {"address": "E.ve@bücher.example", "main": True},
        "limits": {"quota": {"limit": 3 << 30, "used": 0}},
    }


async def test_user_create_needs_only_address_and_password(root: GraphQLClient) -> None:
    user, errors = await create(root)
    assert errors == []
    assert (user["username"], user["role"], user["activated"]) == ("eve@new.example", "USER", True)
    assert user["limits"]["quota"]["limit"] == 1 << 30
    response = await root(
        USER_CREATE, input={"username": "dan@new.example", "passwordDisabled": True}
    )
    dan = response["userCreate"]["user"]
    assert (dan["address"]["address"], dan["hasPassword"]) == ("dan@new.example", False)


INVALID_INPUTS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"username": "ä"}, ("VALIDATION", ["username"], "PATTERN")),
    ({"username": "a..b"}, ("VALIDATION", ["username"], "PATTERN")),
    ({"username": "a" * 129}, ("VALIDATION", ["username"], "PATTERN")),
    ({"address": "eve"}, ("VALIDATION", ["address"], "REQUIRED")),
    ({"address": "e ve@new.example"}, ("VALIDATION", ["address"], "ADDRESS")),
    ({"address": "eve@-new.example"}, ("VALIDATION", ["address"], "DOMAIN")),
    ({"address": "*@new.example"}, ("VALIDATION", ["address"], "PATTERN")),
    ({"address": "eve+x@new.example"}, ("VALIDATION", ["address"], "PATTERN")),
    ({"address": None, "username": "eve"}, ("VALIDATION", ["address"], "REQUIRED")),
    ({"password": None}, ("VALIDATION", ["password"], "REQUIRED")),
    ({"password": "x" * 257}, ("VALIDATION", ["password"], "MAX")),
    ({"passwordDisabled": True}, ("VALIDATION", ["password"], "EXCLUSIVE")),
    ({"role": "PUBLIC"}, ("VALIDATION", ["role"], "ENUM")),
    ({"tags": ["a", " "]}, ("VALIDATION", ["tags", "1"], "LENGTH")),
    ({"tags": ["a" * 129]}, ("VALIDATION", ["tags", "0"], "LENGTH")),
    ({"metadata": [1]}, ("VALIDATION", ["metadata"], "OBJECT")),
    ({"privateMetadata": "x"}, ("VALIDATION", ["privateMetadata"], "OBJECT")),
    ({"mailboxes": {"sent": "Trash"}}, ("VALIDATION", ["mailboxes"], "UNIQUE")),
    ({"mailboxes": {"sent": "inbox"}}, ("VALIDATION", ["mailboxes"], "UNIQUE")),
    ({"mailboxes": {"sent": "a//b"}}, ("VALIDATION", ["mailboxes", "sent"], "PATTERN")),
    ({"username": "a.d.a"}, ("CONFLICT", ["username"], None)),
    ({"username": "ADA"}, ("CONFLICT", ["username"], None)),
    ({"address": "a.Da@example.org"}, ("CONFLICT", ["address"], None)),
    ({"address": "eve@alias.example"}, ("CONFLICT", ["address"], None)),
]  # fmt: skip


async def test_invalid_user_input_is_refused_and_stores_nothing(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    assert ada.user.domain_id
    row = DomainAlias(
        id=1, alias="alias.example", domain_id=ada.user.domain_id, created_at=root.environment.now()
    )
    async with root.environment.write_session() as session:
        session.add(row)
    for case in each_case(INVALID_INPUTS):
        with case as (invalid_input, refusal):
            counts_before = await count_user_table_rows(root.environment)
            user, (error,) = await create(root, **invalid_input)
            assert user is None
            assert (error["code"], error["path"], error.get("constraint")) == refusal
            assert await count_user_table_rows(root.environment) == counts_before


async def test_validate_only_and_internal_error_store_nothing(
    root: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts_before = await count_user_table_rows(environment)
    user, errors = await create(root, options={"validateOnly": True})
    assert (user is not None, errors) == (True, [])
    assert await count_user_table_rows(environment) == counts_before
    monkeypatch.setattr(insert, "_address_row", None)  # simulates an internal error
    response = await root.execute(USER_CREATE, input=VALID_INPUT)
    assert response["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    assert await count_user_table_rows(environment) == counts_before


async def test_domain_admin_creates_no_user_of_higher_role(ada: GraphQLClient) -> None:
    ctx = await domain_admin_context(ada)
    with pytest.raises(Forbidden) as error_info:
        await creation_create.create_user(
            ctx, NewUser(address="eve@example.org", password_disabled=True, role=Role.ADMIN)
        )
    assert (error_info.value.path, error_info.value.requires) == (["role"], "ADMIN")
    response = await ada(USER_CREATE, input=VALID_INPUT)
    assert response["userCreate"]["errors"][0]["requires"] == "DOMAIN_ADMIN"


async def test_domain_admin_creates_users_only_in_own_domains(
    ada: GraphQLClient, environment: Environment
) -> None:
    await make_user(
        environment,
        "far",
    )
    ctx = await domain_admin_context(ada)
    user = await creation_create.create_user(
        ctx, NewUser(address="eve@example.org", password_disabled=True)
    )
    assert user.domain_id == ada.user.domain_id
    with pytest.raises(NotFound) as error_info:
        await creation_create.create_user(
            ctx, NewUser(address="eve@unknown.example", password_disabled=True)
        )
    assert error_info.value.path == ["address"]
    with pytest.raises(Forbidden):
        await creation_create.create_user(
            ctx, NewUser(username="x", empty_address=True, password_disabled=True)
        )
    ctx_without_domains = await domain_admin_context(ada, administers=())
    with pytest.raises(NotFound):
        await creation_create.create_user(
            ctx_without_domains, NewUser(address="dan@example.org", password_disabled=True)
        )


async def test_unlimited_quota_needs_permission(ada: GraphQLClient) -> None:
    new_user = NewUser(address="eve@example.org", password_disabled=True, quota=Unlimited.UNLIMITED)
    with pytest.raises(Forbidden) as error_info:
        await creation_create.create_user(await domain_admin_context(ada), new_user)
    assert (error_info.value.path, error_info.value.requires) == (["quota"], "UNLIMITED_QUOTA")
    ctx_with_permission = await domain_admin_context(ada, AdminPermission.UNLIMITED_QUOTA)
    assert (await creation_create.create_user(ctx_with_permission, new_user)).quota == 0


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize(
    ("limits", "user_input", "refusal"),
    [
        ({"max_users": 1}, {}, {"path": ["address"], "limit": 1, "used": 1}),
        ({"max_user_quota": 10}, {"quota": 11}, {"path": ["quota"], "limit": 10, "used": 11}),
        ({"max_user_quota": 10}, {"quota": None}, {"path": ["quota"], "limit": 10, "used": 0}),
        ({"max_user_quota": 10}, {}, {"path": ["quota"], "limit": 10, "used": 1 << 30}),
        ({"max_user_quota": 10}, {"quota": 10}, None),
        ({"max_user_quota": 10, "default_user_quota": 9}, {}, None),
        ({"quota": (1 << 30) + 5}, {"quota": 6},
         {"path": ["quota"], "limit": (1 << 30) + 5, "used": 1 << 30}),
        ({"quota": (1 << 30) + 5}, {"quota": None},
         {"path": ["quota"], "limit": (1 << 30) + 5, "used": 1 << 30}),
        ({"quota": (1 << 30) + 5}, {"quota": 5}, None),
        ({"max_users": 2}, {}, None),
    ],
)  # fmt: skip
async def test_domain_limits_apply_to_user_create(
    root: GraphQLClient, limits: dict[str, int], user_input: dict[str, Any], refusal: Any
) -> None:
    no_limits = {"default_user_quota": None, "max_users": 0, "max_user_quota": 0, "quota": 0}
    await set_domain_columns(root.environment, **limits)
    user, errors = await create(root, address="eve@example.org", **user_input)
    if refusal is None:
        assert errors == []
    else:
        assert [{"code": "LIMIT_REACHED", **refusal}] == errors
        assert user is None
    await set_domain_columns(
        root.environment, **no_limits, quota_allocated=await load_allocated_quota(root.environment)
    )


async def load_allocated_quota(environment: Environment) -> int:
    """Return the quota that is allocated to users, since the tests change the limits directly."""
    ((total,),) = await select_rows(
        environment, "SELECT sum(coalesce(quota, 1073741824)) FROM users"
    )
    return int(total)


@pytest.mark.usefixtures("ada")
async def test_new_user_counts_for_max_users(root: GraphQLClient) -> None:
    await set_domain_columns(root.environment, max_users=2)
    assert (await create(root, address="eve@example.org"))[1] == []
    _, (error,) = await create(root, address="dan@example.org")
    assert (error["limit"], error["used"]) == (2, 2)


MAILBOXES_QUERY = (
    "{ viewer { user { mailboxes { nodes { path specialUse subscribed uidValidity } } } } }"
)


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
async def test_new_user_has_special_use_mailboxes(
    root: GraphQLClient, names: dict[str, str], paths: dict[str, str]
) -> None:
    user, errors = await create(root, mailboxes=names)
    assert errors == []
    user_id = global_ids.decode("User", user["id"])
    query = "SELECT special_use, path FROM mailboxes WHERE user_id = :key"
    mailbox_rows = await select_rows(root.environment, query, key=user_id)
    assert dict(mailbox_rows) == paths
    assert len(mailbox_rows) == len(paths)
    validities = await select_rows(root.environment, "SELECT DISTINCT uid_validity FROM mailboxes")
    assert len(validities) == len(paths)
    kinds = [kind for kind, _ in await load_journal_entries(root.environment, user_id)]
    assert kinds == [EventType.ADDRESS_CREATED, EventType.MAILBOX_CREATED]


async def test_create_with_same_idempotency_key_creates_one_user(root: GraphQLClient) -> None:
    first, _ = await create(root, options={"idempotencyKey": "k"})
    repeated, _ = await create(root, options={"idempotencyKey": "k"})
    assert first == repeated
