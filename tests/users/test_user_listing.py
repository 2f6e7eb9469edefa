"""Accounts: listing them, and who sees them."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from models.runtime.environment import Environment
from models.store.keyset_pages import Cursor
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.context import Context, Viewer
from resolvers.users import loaders as user_loaders
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.conftest import Client, make_client, make_user
from tests.support.stores.counter_check import rows

ALL = ["ann", "bert", "carl", "d.an", "eve@new.example", "zoe"]
LIST = """
query ($filter: UserFilter, $first: Int, $after: String, $last: Int, $before: String,
       $orderBy: UserOrder! = USERNAME) {
  users(filter: $filter, first: $first, after: $after, last: $last, before: $before,
        orderBy: $orderBy) {
    nodes { username } totalCount
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""
pytestmark = pytest.mark.usefixtures("counted")


async def far(world: Environment) -> int:
    """An account of another domain."""
    admin = Context(world, Viewer(role=Role.ROOT))
    new = NewUser(address="eve@new.example", password_disabled=True)
    return (await creation_create.create_user(admin, new)).id


@pytest.fixture
async def crowd(root: Client) -> Client:
    admin = Context(root.world, Viewer(role=Role.ROOT))
    people: tuple[tuple[str, dict[str, Any]], ...] = (
        ("d.an", {"name": "Dän Brown", "suspended": True}),
        ("bert", {"disabled": True, "tags": ["x"]}),
        ("zoe", {"name": "Zoë_100%", "role": Role.ADMIN}),
        ("ann", {}),
        ("carl", {"tags": ["X", "Y"]}),
    )
    for name, more in people:
        await creation_create.create_user(
            admin, NewUser(name, address=f"{name}@example.org", password_disabled=True, **more)
        )
    await far(root.world)
    return root


async def listed(client: Client, **ask: Any) -> Any:
    return (await client(LIST, **ask))["users"]


def names_of(page: Any) -> list[str]:
    return [node["username"] for node in page["nodes"]]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (None, ALL),
        ({"query": "AN"}, ["ann"]),
        ({"query": "d.A"}, ["d.an"]),
        ({"query": "DA"}, ["d.an"]),
        ({"query": "ev"}, ["eve@new.example"]),
        ({"query": "ANN"}, ["ann"]),
        ({"query": "w.exam"}, ["eve@new.example"]),
        ({"masks": ["*carl*", "*@new.*"], "query": "arl"}, ["carl"]),
        ({"query": "dan@example"}, ["d.an"]),
        ({"query": "D.a.n@"}, ["d.an"]),
        ({"masks": ["*a*n*"]}, ["ann", "d.an"]),
        ({"masks": ["B?rt", "z*"]}, ["bert", "zoe"]),
        ({"masks": ["*@new.example"]}, ["eve@new.example"]),
        ({"masks": ["%", "_*"]}, []),
        ({"tags": ["X", "y"]}, ["bert", "carl"]),
        ({"requiredTags": ["x", "Y"]}, ["carl"]),
        ({"tags": ["y"], "requiredTags": ["x"], "masks": ["c*"]}, ["carl"]),
        ({"tags": []}, []),
        ({"requiredTags": []}, []),
        ({"createdAfter": "2031-01-01T00:00:00Z"}, []),
        ({"createdAfter": "2029-12-31T23:59:59Z", "query": "bert"}, ["bert"]),
        ({"query": "DÄN"}, ["d.an"]),
        ({"query": "zoë"}, ["zoe"]),
        ({"query": "e@New"}, ["eve@new.example"]),
        ({"query": "d.an@example"}, ["d.an"]),
        ({"query": "%"}, []),
        ({"query": "00%"}, ["zoe"]),
        ({"query": "_100"}, ["zoe"]),
        ({"query": "' OR 1=1 --"}, []),
        ({"roles": ["ADMIN"]}, ["zoe"]),
        ({"roles": ["ADMIN", "USER"], "query": "zoë"}, ["zoe"]),
        ({"domain": "New.Example"}, ["eve@new.example"]),
        ({"domain": "elsewhere.example"}, []),
        ({"disabled": True}, ["bert"]),
        ({"suspended": True}, ["d.an"]),
        ({"suspended": False, "disabled": False}, ["ann", "carl", "eve@new.example", "zoe"]),
    ],
)
async def test_a_listing_is_narrowed(
    crowd: Client, condition: dict[str, Any] | None, expected: list[str]
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
    ("order", "expected"),
    [
        ("CREATED", ["d.an", "bert", "zoe", "ann", "carl", "eve@new.example"]),
        ("QUOTA_USED", ["carl", "bert", "eve@new.example", "ann", "zoe", "d.an"]),
        ("LAST_LOGIN", ["zoe", "ann", "eve@new.example", "carl", "bert", "d.an"]),
    ],
)
async def test_each_order_pages_both_ways_with_ties_and_without_gap(
    crowd: Client, order: str, expected: list[str]
) -> None:
    async with crowd.world.write_session() as session:
        connection = await session.connection()
        for name, used, login in (
            ("carl", 9, None),
            ("bert", 5, None),
            ("zoe", 0, 7),
            ("ann", 0, 7),
        ):
            values = {"used": used, "last_login_at": crowd.world.now() if login else None}
            if name == "zoe":
                values["last_login_at"] = crowd.world.now() + timedelta(seconds=1)
            await connection.execute(update(User).where(col(User.username) == name).values(values))
    for size in (1, 2, 4, 6):
        seen, at = [], {"hasNextPage": True, "endCursor": None}
        while at["hasNextPage"]:
            page = await listed(crowd, first=size, after=at["endCursor"], orderBy=order)
            seen += names_of(page)
            at = page["pageInfo"]
        back: list[str] = []
        at = {"hasPreviousPage": True, "startCursor": None}
        while at["hasPreviousPage"]:
            page = await listed(crowd, last=size, before=at["startCursor"], orderBy=order)
            back = names_of(page) + back
            at = page["pageInfo"]
        assert (seen, back) == (expected, expected)
    other = await crowd.raw(LIST, first=1, after=page["pageInfo"]["startCursor"])
    assert other["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}
    async with crowd.world.write_session() as session:
        await (await session.connection()).execute(update(User).values(used=0))


async def test_forged_cursors_and_too_much_are_refused(crowd: Client) -> None:
    forged = str(Cursor("users-CREATED", "text", 7))
    answer = await crowd.raw(LIST, first=1, after=forged, orderBy="CREATED")
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}
    for condition in (
        {"query": "x" * 1001}, {"masks": ["x" * 129]}, {"masks": ["x"] * 101},
        {"tags": ["x"] * 101}, {"requiredTags": ["x"] * 101},
    ):  # fmt: skip
        answer = await crowd.raw(LIST, filter=condition or None)
        assert answer["errors"], condition


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
    by_id = {"id": global_ids.encode("User", bob.user.id)}
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
    answer = await ada.raw(USER, by={"id": global_ids.encode("Mailbox", 7)})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_ID"}


NODES = """query ($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }"""


async def test_a_user_finds_nothing_of_others_by_any_id(ada: Client, bob: Client) -> None:
    sql = """SELECT 'Mailbox', id FROM mailboxes WHERE user_id = :key
        UNION SELECT 'Address', id FROM addresses WHERE user_id = :key
        UNION SELECT 'User', id FROM users WHERE id = :key"""
    given = [global_ids.encode(*row) for row in await rows(ada.world, sql, key=bob.user.id)]
    assert len(given) == 7
    assert await ada(NODES, ids=given) == {"nodes": [None] * 7}
    assert None not in (await bob(NODES, ids=given))["nodes"]


async def test_a_domain_is_seen_from_inside_and_by_admins(
    root: Client, ada: Client, world: Environment
) -> None:
    await far(world)
    sql = "SELECT id FROM domains WHERE name = :name"
    keys = [
        global_ids.encode("Domain", (await rows(world, sql, name=name))[0][0])
        for name in ("example.org", "new.example")
    ]
    mine, foreign = (await ada(NODES, ids=keys))["nodes"]
    assert (mine["id"], foreign) == (keys[0], None)
    assert [node["id"] for node in (await root(NODES, ids=keys))["nodes"]] == keys


async def test_the_list_of_users_is_for_admins(ada: Client) -> None:
    answer = await ada.raw("{ users { nodes { username } } }")
    assert (answer["data"], answer["errors"][0]["extensions"]) == (None, {"code": "FORBIDDEN"})


async def test_internal_data_is_hidden_from_its_user(root: Client, world: Environment) -> None:
    eve = await make_client(world, root.http, "eve", internal_data={"debt": 7})
    document = "query ($by: UserRef) { user(by: $by) { username internalData } }"
    answer = await eve.raw(document)
    assert answer["data"] == {"user": {"username": "eve", "internalData": None}}
    assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
    seen = await root(document, by={"username": "eve"})
    assert seen["user"]["internalData"] == {"debt": 7}


async def test_a_domain_admin_sees_the_users_of_his_domains(
    ada: Client, world: Environment
) -> None:
    foreign, inside = await far(world), await make_user(world, "inside")
    assert ada.user.domain_id
    viewer = Viewer(
        ada.user.id,
        Role.DOMAIN_ADMIN,
        frozenset({Scope.MASTER}),
        administered_domains=frozenset({ada.user.domain_id}),
    )
    found = await user_loaders.load_users_by_id(
        Context(world, viewer), [ada.user.id, foreign, inside.id]
    )
    assert [row and row.username for row in found] == ["ada", None, "inside"]
