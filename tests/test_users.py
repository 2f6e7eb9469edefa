"""Accounts: making them, listing them, and who sees them."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import update

from graph import ids
from models.domains import Domain, DomainAlias
from models.errors import Forbidden, NotFound
from models.journal import ChangeKind
from models.roles import AdminPermission, Role, Scope
from models.world import World
from resolvers import users
from resolvers.context import Context, Viewer
from resolvers.users import NewUser
from tests.conftest import Client, make_client, make_user
from tests.counts import journal, recount, rows

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
LIST = """
query ($filter: UserFilter, $first: Int, $after: String, $last: Int, $before: String) {
  users(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { username } totalCount
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""
GOOD = {"address": "eve@new.example", "password": "correct horse"}
TABLES = ("users", "mailboxes", "addresses", "domains", "streams", "changes", "replays")


@pytest.fixture(autouse=True)
async def counted(world: World) -> AsyncIterator[None]:
    yield
    await recount(world)


async def create(client: Client, **given: Any) -> tuple[Any, list[Any]]:
    answer = (await client(CREATE, input={**GOOD, **given}))["userCreate"]
    return answer["user"], answer["errors"]


async def sizes(world: World) -> list[int]:
    asked = (f"SELECT count(*) FROM {table}" for table in TABLES)  # noqa: S608 - our own names
    return [(await rows(world, sql))[0][0] for sql in asked]


async def of_domain(world: World, **values: Any) -> None:
    async with world.write() as session:
        await session.exec(update(Domain).values(**values))


async def admin_of(
    client: Client, *permissions: AdminPermission, administers: tuple[str, ...] = ("example.org",)
) -> Context:
    """What an operation of a DOMAIN_ADMIN of these domains is handed."""
    named = {name: key for key, name in await rows(client.world, "SELECT id, name FROM domains")}
    viewer = Viewer(
        client.user.id,
        Role.DOMAIN_ADMIN,
        frozenset({Scope.MASTER}),
        frozenset(permissions),
        frozenset(named[name] for name in administers),
    )
    return Context(client.world, viewer)


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
    assert ids.decode("User", key)
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
    row = DomainAlias(
        id=1, alias="alias.example", domain_id=ada.user.domain_id, created_at=root.world.now()
    )
    async with root.world.write() as session:
        session.add(row)
    before = await sizes(root.world)
    user, (error,) = await create(root, **wrong)
    assert user is None
    assert (error["code"], error["path"], error.get("constraint")) == refusal
    assert await sizes(root.world) == before


async def test_a_dry_run_and_a_failure_in_the_middle_leave_nothing(
    root: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await sizes(world)
    assert await create(root, options={"validateOnly": True}) == (None, [])
    assert await sizes(world) == before
    monkeypatch.setattr(users, "_add_address", None)  # as if our own code broke
    answer = await root.raw(CREATE, input=GOOD)
    assert answer["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    assert await sizes(world) == before


async def test_nobody_makes_an_account_above_his_own(ada: Client) -> None:
    ctx = await admin_of(ada)
    with pytest.raises(Forbidden) as refused:
        await users.create(
            ctx, NewUser(address="eve@example.org", password_disabled=True, role=Role.ADMIN)
        )
    assert (refused.value.path, refused.value.requires) == (["role"], "ADMIN")
    answer = await ada(CREATE, input=GOOD)
    assert answer["userCreate"]["errors"][0]["requires"] == "DOMAIN_ADMIN"


async def test_an_admin_makes_accounts_in_his_domains_only(ada: Client, world: World) -> None:
    await make_user(
        world,
        "far",
    )
    ctx = await admin_of(ada)
    made = await users.create(ctx, NewUser(address="eve@example.org", password_disabled=True))
    assert made.domain_id == ada.user.domain_id
    with pytest.raises(NotFound) as refused:
        await users.create(ctx, NewUser(address="eve@unknown.example", password_disabled=True))
    assert refused.value.path == ["address"]
    with pytest.raises(Forbidden):
        await users.create(ctx, NewUser(username="x", empty_address=True, password_disabled=True))
    nobodys = await admin_of(ada, administers=())
    with pytest.raises(NotFound):
        await users.create(nobodys, NewUser(address="dan@example.org", password_disabled=True))


async def test_unlimited_storage_is_given_by_permission(ada: Client) -> None:
    new = NewUser(address="eve@example.org", password_disabled=True, quota=0)
    with pytest.raises(Forbidden) as refused:
        await users.create(await admin_of(ada), new)
    assert (refused.value.path, refused.value.requires) == (["quota"], "UNLIMITED_QUOTA")
    may = await admin_of(ada, AdminPermission.UNLIMITED_QUOTA)
    assert (await users.create(may, new)).quota == 0


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
    await of_domain(root.world, **limits)
    user, errors = await create(root, address="eve@example.org", **given)
    if refusal is None:
        assert errors == []
    else:
        assert [{"code": "LIMIT_REACHED", "index": None, **refusal}] == errors
        assert user is None
    await of_domain(root.world, **plain, quota_allocated=await allocated(root.world))


async def allocated(world: World) -> int:
    """What the limits of a test, which come and go, make of the sum."""
    ((total,),) = await rows(world, "SELECT sum(coalesce(quota, 1073741824)) FROM users")
    return int(total)


@pytest.mark.usefixtures("ada")
async def test_a_full_domain_counts_the_new_one(root: Client) -> None:
    await of_domain(root.world, max_users=2)
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
    key = ids.decode("User", user["id"])
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


# listing


@pytest.fixture
async def crowd(root: Client) -> Client:
    admin = Context(root.world, Viewer(role=Role.ROOT))
    people: tuple[tuple[str, dict[str, Any]], ...] = (
        ("d.an", {"name": "Dän Brown", "suspended": True}),
        ("bert", {"disabled": True}),
        ("zoe", {"name": "Zoë_100%", "role": Role.ADMIN}),
        ("ann", {}),
        ("carl", {}),
    )
    for name, more in people:
        await users.create(
            admin, NewUser(name, address=f"{name}@example.org", password_disabled=True, **more)
        )
    await create(root)
    return root


ALL = ["ann", "bert", "carl", "d.an", "eve@new.example", "zoe"]


async def listed(client: Client, **ask: Any) -> Any:
    return (await client(LIST, **ask))["users"]


def names_of(page: Any) -> list[str]:
    return [node["username"] for node in page["nodes"]]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({}, ALL),
        ({"query": "AN"}, ["ann", "d.an"]),
        ({"query": "DÄN"}, ["d.an"]),
        ({"query": "zoë"}, ["zoe"]),
        ({"query": "e@New"}, ["eve@new.example"]),
        ({"query": "d.an@example"}, ["d.an"]),
        ({"query": "%"}, ["zoe"]),
        ({"query": "_100"}, ["zoe"]),
        ({"query": "' OR 1=1 --"}, []),
        ({"roles": ["ADMIN"]}, ["zoe"]),
        ({"roles": ["ADMIN", "USER"], "query": "zo"}, ["zoe"]),
        ({"domain": "New.Example"}, ["eve@new.example"]),
        ({"domain": "elsewhere.example"}, []),
        ({"disabled": True}, ["bert"]),
        ({"suspended": True}, ["d.an"]),
        ({"suspended": False, "disabled": False}, ["ann", "carl", "eve@new.example", "zoe"]),
    ],
)
async def test_a_listing_is_narrowed(
    crowd: Client, condition: dict[str, Any], expected: list[str]
) -> None:
    page = await listed(crowd, filter=condition)
    assert (names_of(page), page["totalCount"]) == (expected, len(expected))


async def test_pages_meet_without_gap_both_ways(crowd: Client) -> None:
    seen, at = [], {"hasNextPage": True, "endCursor": None}
    while at["hasNextPage"]:
        page = await listed(crowd, first=2, after=at["endCursor"])
        seen.append(names_of(page))
        at = page["pageInfo"]
    assert seen == [ALL[:2], ALL[2:4], ALL[4:]]
    back, at = [], {"hasPreviousPage": True, "startCursor": None}
    while at["hasPreviousPage"]:
        page = await listed(crowd, last=4, before=at["startCursor"])
        back.append(names_of(page))
        at = page["pageInfo"]
    assert back == [ALL[2:], ALL[:2]]
    await make_user(crowd.world, "anna")  # between the pages: what was read stays where it is
    first = await listed(crowd, first=1)
    assert names_of(await listed(crowd, first=1, after=first["pageInfo"]["endCursor"])) == ["anna"]


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        ({"first": 251}, "BAD_PAGINATION"),
        ({"first": -1}, "BAD_PAGINATION"),
        ({"last": 251}, "BAD_PAGINATION"),
        ({"first": 1, "last": 1}, "BAD_PAGINATION"),
        ({"after": "", "first": 1}, "BAD_CURSOR"),
        ({"after": "x", "first": 1}, "BAD_CURSOR"),
        ({"before": "x", "first": 1}, "BAD_PAGINATION"),
    ],
)
async def test_a_page_that_is_none_says_so_in_a_code(
    root: Client, ask: dict[str, Any], code: str
) -> None:
    answer = await root.raw(LIST, **ask)
    assert answer["errors"][0]["extensions"] == {"code": code}


async def test_a_cursor_belongs_to_its_filter(crowd: Client) -> None:
    cursor = (await listed(crowd, first=1))["pageInfo"]["endCursor"]
    answer = await crowd.raw(LIST, first=1, after=cursor, filter={"suspended": False})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


@pytest.mark.usefixtures("ada")
async def test_a_listing_costs_the_same_however_many_there_are(
    root: Client, statements: list[str]
) -> None:
    document = """{ users { totalCount nodes { username cursor limits { quota { allowed } }
        domain { name } address { address domain { name } user { username } }
        mailboxes { path } addresses { totalCount nodes { address } } } } }"""

    async def cost() -> int:
        del statements[:]
        await root(document)
        return len([sent for sent in statements if "api_keys" not in sent])

    one = await cost()
    for n in range(20):
        await make_user(root.world, f"user{n}")
    assert await cost() == one


# who sees whom

USER = """query ($by: UserRef) { user(by: $by) { username } }"""


@pytest.mark.parametrize(
    "by",
    [
        {"username": "Bob"}, {"username": "b.o.b"}, {"username": "bob@example.org"},
        {"address": "B.ob+x@example.org"},
    ],
)  # fmt: skip
async def test_an_account_has_many_names_and_only_its_owner_and_admins_see_it(
    root: Client, ada: Client, bob: Client, by: dict[str, str]
) -> None:
    for client, seen in ((root, True), (bob, True), (ada, False)):
        assert await client(USER, by=by) == {"user": {"username": "bob"} if seen else None}
    by_id = {"id": ids.encode("User", bob.user.id)}
    for client, seen in ((root, True), (bob, True), (ada, False)):
        assert await client(USER, by=by_id) == {"user": {"username": "bob"} if seen else None}


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize("odd", ["", "nobody", "*@example.org", "@", "é@example.org"])
async def test_an_unknown_name_is_nobody(root: Client, odd: str) -> None:
    assert await root(USER, by={"username": odd}) == {"user": None}


async def test_nothing_named_is_oneself(root: Client, ada: Client) -> None:
    assert await ada(USER) == {"user": {"username": "ada"}}
    answer = await root.raw(USER)
    assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


async def test_a_made_up_id_is_refused(ada: Client) -> None:
    answer = await ada.raw(USER, by={"id": ids.encode("Mailbox", 7)})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_ID"}


NODES = """query ($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }"""


async def test_a_user_finds_nothing_of_others_by_any_id(ada: Client, bob: Client) -> None:
    sql = """SELECT 'Mailbox', id FROM mailboxes WHERE user_id = :key
        UNION SELECT 'Address', id FROM addresses WHERE user_id = :key
        UNION SELECT 'User', id FROM users WHERE id = :key"""
    given = [ids.encode(*row) for row in await rows(ada.world, sql, key=bob.user.id)]
    assert len(given) == 7
    assert await ada(NODES, ids=given) == {"nodes": [None] * 7}
    assert None not in (await bob(NODES, ids=given))["nodes"]


async def test_a_domain_is_seen_from_inside_and_by_admins(
    root: Client, ada: Client, world: World
) -> None:
    await create(root)
    sql = "SELECT id FROM domains WHERE name = :name"
    keys = [
        ids.encode("Domain", (await rows(world, sql, name=name))[0][0])
        for name in ("example.org", "new.example")
    ]
    mine, foreign = (await ada(NODES, ids=keys))["nodes"]
    assert (mine["id"], foreign) == (keys[0], None)
    assert [node["id"] for node in (await root(NODES, ids=keys))["nodes"]] == keys


async def test_the_list_of_users_is_for_admins(ada: Client) -> None:
    answer = await ada.raw("{ users { nodes { username } } }")
    assert (answer["data"], answer["errors"][0]["extensions"]) == (None, {"code": "FORBIDDEN"})


async def test_internal_data_is_hidden_from_its_user(root: Client, world: World) -> None:
    eve = await make_client(world, root.http, "eve", internal_data={"debt": 7})
    document = "query ($by: UserRef) { user(by: $by) { username internalData } }"
    answer = await eve.raw(document)
    assert answer["data"] == {"user": {"username": "eve", "internalData": None}}
    assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
    seen = await root(document, by={"username": "eve"})
    assert seen["user"]["internalData"] == {"debt": 7}


async def test_a_domain_admin_sees_the_users_of_his_domains(root: Client, ada: Client) -> None:
    user, _ = await create(root)
    ctx = await admin_of(ada)
    foreign = ids.decode("User", user["id"])
    inside = await make_user(root.world, "inside")
    found = await users.by_ids(ctx, [ada.user.id, foreign, inside.id])
    assert [row and row.username for row in found] == ["ada", None, "inside"]
