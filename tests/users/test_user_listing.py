"""Lists of users: filters, order, pages and visibility."""

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
from resolvers.context import Context
from resolvers.users import loaders as user_loaders
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_client, make_user
from tests.support.case_loop import each_case
from tests.support.stores.counter_check import select_rows

ALL_USERNAMES = ["ann", "bert", "carl", "d.an", "eve@new.example", "zoe"]
USERS_QUERY = """
query ($filter: UserFilter, $first: Int, $after: String, $last: Int, $before: String,
       $orderBy: UserOrder! = USERNAME_ASC) {
  users(filter: $filter, first: $first, after: $after, last: $last, before: $before,
        orderBy: $orderBy) {
    nodes { username } totalCount
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""
pytestmark = pytest.mark.usefixtures("verify_counters")


async def create_user_of_other_domain(environment: Environment) -> int:
    """Create a user of another domain."""
    admin = Context(environment, Viewer(role=Role.ROOT))
    new_user = NewUser(address="eve@new.example", password_disabled=True)
    return (await creation_create.create_user(admin, new_user)).id


@pytest.fixture
async def client_with_users(root: GraphQLClient) -> GraphQLClient:
    admin = Context(root.environment, Viewer(role=Role.ROOT))
    user_fields: tuple[tuple[str, dict[str, Any]], ...] = (
        ("d.an", {"name": "Dän Brown", "suspended": True}),
        ("bert", {"active": False, "tags": ["x"]}),
        ("zoe", {"name": "Zoë_100%", "role": Role.ADMIN}),
        ("ann", {}),
        ("carl", {"tags": ["X", "Y"]}),
    )
    for name, extra in user_fields:
        await creation_create.create_user(
            admin, NewUser(name, address=f"{name}@example.org", password_disabled=True, **extra)
        )
    await create_user_of_other_domain(root.environment)
    return root


async def load_user_page(client: GraphQLClient, **page_arguments: Any) -> Any:
    return (await client(USERS_QUERY, **page_arguments))["users"]


def usernames_of_page(page: Any) -> list[str]:
    return [node["username"] for node in page["nodes"]]


FILTERS: list[tuple[dict[str, Any] | None, list[str]]] = [
    (None, ALL_USERNAMES),
    ({"query": "AN"}, ["ann"]),
    ({"query": "d.A"}, ["d.an"]),
    ({"query": "DA"}, ["d.an"]),
    ({"query": "ev"}, ["eve@new.example"]),
    ({"query": "ANN"}, ["ann"]),
    ({"query": "w.exam"}, ["eve@new.example"]),
    ({"patterns": ["*carl*", "*@new.*"], "query": "arl"}, ["carl"]),
    ({"query": "dan@example"}, ["d.an"]),
    ({"query": "D.a.n@"}, ["d.an"]),
    ({"patterns": ["*a*n*"]}, ["ann", "d.an"]),
    ({"patterns": ["B?rt", "z*"]}, ["bert", "zoe"]),
    ({"patterns": ["*@new.example"]}, ["eve@new.example"]),
    ({"patterns": ["%", "_*"]}, []),
    ({"tags": ["X", "y"]}, ["bert", "carl"]),
    ({"requiredTags": ["x", "Y"]}, ["carl"]),
    ({"tags": ["y"], "requiredTags": ["x"], "patterns": ["c*"]}, ["carl"]),
    ({"tags": []}, []),
    ({"requiredTags": []}, []),
    ({"createdSince": "2031-01-01T00:00:00Z"}, []),
    ({"createdBefore": "2029-12-31T23:59:59Z"}, []),
    ({"createdBefore": "2031-01-01T00:00:00Z", "query": "bert"}, ["bert"]),
    ({"createdSince": "2029-12-31T23:59:59Z", "query": "bert"}, ["bert"]),
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
    ({"domain": {"name": "New.Example"}}, ["eve@new.example"]),
    ({"domain": {"name": "elsewhere.example"}}, []),
    ({"active": False}, ["bert"]),
    ({"suspended": True}, ["d.an"]),
    ({"suspended": False, "active": True}, ["ann", "carl", "eve@new.example", "zoe"]),
]


async def test_user_list_has_filters(client_with_users: GraphQLClient) -> None:
    for case in each_case(FILTERS):
        with case as (condition, expected):
            page = await load_user_page(client_with_users, filter=condition)
            assert (usernames_of_page(page), page["totalCount"]) == (expected, len(expected))


async def test_pages_have_no_gaps_in_both_directions(client_with_users: GraphQLClient) -> None:
    forward_pages, page_info = [], {"hasNextPage": True, "endCursor": None}
    while page_info["hasNextPage"]:
        page = await load_user_page(client_with_users, first=2, after=page_info["endCursor"])
        forward_pages.append(usernames_of_page(page))
        page_info = page["pageInfo"]
    assert forward_pages == [ALL_USERNAMES[:2], ALL_USERNAMES[2:4], ALL_USERNAMES[4:]]
    backward_pages, page_info = [], {"hasPreviousPage": True, "startCursor": None}
    while page_info["hasPreviousPage"]:
        page = await load_user_page(client_with_users, last=4, before=page_info["startCursor"])
        backward_pages.append(usernames_of_page(page))
        page_info = page["pageInfo"]
    assert backward_pages == [ALL_USERNAMES[2:], ALL_USERNAMES[:2]]
    # a new user between two pages does not move the cursor
    await make_user(client_with_users.environment, "anna")
    first = await load_user_page(client_with_users, first=1)
    assert usernames_of_page(
        await load_user_page(client_with_users, first=1, after=first["pageInfo"]["endCursor"])
    ) == ["anna"]


async def test_each_order_has_pages_without_gaps_in_both_directions(
    client_with_users: GraphQLClient,
) -> None:
    async with client_with_users.environment.write_session() as session:
        connection = await session.connection()
        for name, used, has_login in (
            ("carl", 9, None),
            ("bert", 5, None),
            ("zoe", 0, 7),
            ("ann", 0, 7),
        ):
            values = {
                "used": used,
                "last_login_at": client_with_users.environment.now() if has_login else None,
            }
            if name == "zoe":
                values["last_login_at"] = client_with_users.environment.now() + timedelta(seconds=1)
            await connection.execute(update(User).where(col(User.username) == name).values(values))
    cases: list[tuple[str, list[str]]] = [
        ("CREATED_AT_ASC", ["d.an", "bert", "zoe", "ann", "carl", "eve@new.example"]),
        ("CREATED_AT_DESC", ["eve@new.example", "carl", "ann", "zoe", "bert", "d.an"]),
        ("STORAGE_USED_ASC", ["d.an", "zoe", "ann", "eve@new.example", "bert", "carl"]),
        ("STORAGE_USED_DESC", ["carl", "bert", "eve@new.example", "ann", "zoe", "d.an"]),
        ("LAST_LOGIN_AT_ASC", ["d.an", "bert", "carl", "eve@new.example", "ann", "zoe"]),
        ("LAST_LOGIN_AT_DESC", ["zoe", "ann", "eve@new.example", "carl", "bert", "d.an"]),
        ("USERNAME_DESC", ["zoe", "eve@new.example", "d.an", "carl", "bert", "ann"]),
    ]
    for case in each_case(cases):
        with case as (order, expected):
            for size in (1, 2, 4, 6):
                forward_names, page_info = [], {"hasNextPage": True, "endCursor": None}
                while page_info["hasNextPage"]:
                    page = await load_user_page(
                        client_with_users, first=size, after=page_info["endCursor"], orderBy=order
                    )
                    forward_names += usernames_of_page(page)
                    page_info = page["pageInfo"]
                backward_names: list[str] = []
                page_info = {"hasPreviousPage": True, "startCursor": None}
                while page_info["hasPreviousPage"]:
                    page = await load_user_page(
                        client_with_users, last=size, before=page_info["startCursor"], orderBy=order
                    )
                    backward_names = usernames_of_page(page) + backward_names
                    page_info = page["pageInfo"]
                assert (forward_names, backward_names) == (expected, expected)
            other_response = await client_with_users.execute(
                USERS_QUERY, first=1, after=page["pageInfo"]["startCursor"]
            )
            assert other_response["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}
    async with client_with_users.environment.write_session() as session:
        await (await session.connection()).execute(update(User).values(used=0))


async def test_forged_cursor_and_large_filter_are_refused(client_with_users: GraphQLClient) -> None:
    for order, sort_value in (("CREATED_AT_ASC", "text"), ("USERNAME_ASC", "a\0b")):
        forged = str(Cursor(f"users-{order}", sort_value, 7))
        response = await client_with_users.execute(
            USERS_QUERY, first=1, after=forged, orderBy=order
        )
        assert response["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}
    for condition in (
        {"query": "x" * 1001}, {"patterns": ["x" * 129]}, {"patterns": ["x"] * 101},
        {"tags": ["x"] * 101}, {"requiredTags": ["x"] * 101},
    ):  # fmt: skip
        response = await client_with_users.execute(USERS_QUERY, filter=condition or None)
        assert response["errors"], condition


async def test_invalid_page_arguments_have_an_error_code(root: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"first": 251}, "BAD_PAGINATION"),
        ({"first": -1}, "BAD_PAGINATION"),
        ({"last": 251}, "BAD_PAGINATION"),
        ({"first": 1, "last": 1}, "BAD_PAGINATION"),
        ({"after": "", "first": 1}, "BAD_CURSOR"),
        ({"after": "x", "first": 1}, "BAD_CURSOR"),
        ({"before": "x", "first": 1}, "BAD_PAGINATION"),
    ]
    for case in each_case(cases):
        with case as (page_arguments, code):
            response = await root.execute(USERS_QUERY, **page_arguments)
            assert response["errors"][0]["extensions"] == {"code": code}


async def test_cursor_of_other_filter_is_refused(client_with_users: GraphQLClient) -> None:
    cursor = (await load_user_page(client_with_users, first=1))["pageInfo"]["endCursor"]
    response = await client_with_users.execute(
        USERS_QUERY, first=1, after=cursor, filter={"suspended": False}
    )
    assert response["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


@pytest.mark.usefixtures("ada")
async def test_user_list_runs_constant_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    document = """{ users { totalCount nodes { username cursor limits { quota { limit } }
        domain { name } address { address domain { name } user { username } }
        mailboxes { nodes { path } } addresses { totalCount nodes { address } } } } }"""

    async def count_statements() -> int:
        del statements[:]
        await root(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    count_before = await count_statements()
    for n in range(20):
        await make_user(root.environment, f"user{n}")
    assert await count_statements() == count_before


USER_QUERY = """query ($by: UserRef) { user(by: $by) { username } }"""


async def test_user_is_found_by_any_name_only_by_owner_and_admins(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    cases: list[dict[str, str]] = [
        {"username": "Bob"}, {"username": "b.o.b"}, {"username": "bob@example.org"},
        {"address": "B.ob+x@example.org"},
    ]  # fmt: skip
    for case in each_case(cases):
        with case as user_ref:
            for client, is_visible in ((root, True), (bob, True), (ada, False)):
                assert await client(USER_QUERY, by=user_ref) == {
                    "user": {"username": "bob"} if is_visible else None
                }
            by_id = {"id": global_ids.encode("User", bob.user.id)}
            for client, is_visible in ((root, True), (bob, True), (ada, False)):
                assert await client(USER_QUERY, by=by_id) == {
                    "user": {"username": "bob"} if is_visible else None
                }


@pytest.mark.usefixtures("ada")
async def test_unknown_username_returns_null(root: GraphQLClient) -> None:
    cases: list[str] = ["", "nobody", "*@example.org", "@", "é@example.org"]
    for case in each_case(cases):
        with case as unknown_name:
            assert await root(USER_QUERY, by={"username": unknown_name}) == {"user": None}


async def test_user_without_argument_is_the_viewer(root: GraphQLClient, ada: GraphQLClient) -> None:
    assert await ada(USER_QUERY) == {"user": {"username": "ada"}}
    response = await root.execute(USER_QUERY)
    assert response["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


async def test_id_of_other_type_is_refused(ada: GraphQLClient) -> None:
    response = await ada.execute(USER_QUERY, by={"id": global_ids.encode("Mailbox", 7)})
    assert response["errors"][0]["extensions"] == {"code": "BAD_ID"}


NODES_QUERY = """query ($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }"""


async def test_nodes_of_other_users_are_hidden(ada: GraphQLClient, bob: GraphQLClient) -> None:
    query = """SELECT 'Mailbox', id FROM mailboxes WHERE user_id = :key
        UNION SELECT 'Address', id FROM addresses WHERE user_id = :key
        UNION SELECT 'User', id FROM users WHERE id = :key"""
    node_ids = [
        global_ids.encode(*row)
        for row in await select_rows(ada.environment, query, key=bob.user.id)
    ]
    assert len(node_ids) == 7
    assert await ada(NODES_QUERY, ids=node_ids) == {"nodes": [None] * 7}
    assert None not in (await bob(NODES_QUERY, ids=node_ids))["nodes"]


async def test_domain_is_visible_to_its_users_and_admins(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_user_of_other_domain(environment)
    query = "SELECT id FROM domains WHERE name = :name"
    domain_ids = [
        global_ids.encode("Domain", (await select_rows(environment, query, name=name))[0][0])
        for name in ("example.org", "new.example")
    ]
    own_domain, other_domain = (await ada(NODES_QUERY, ids=domain_ids))["nodes"]
    assert (own_domain["id"], other_domain) == (domain_ids[0], None)
    assert [node["id"] for node in (await root(NODES_QUERY, ids=domain_ids))["nodes"]] == domain_ids


async def test_user_list_needs_an_admin(ada: GraphQLClient) -> None:
    response = await ada.execute("{ users { nodes { username } } }")
    assert response["data"] == {"users": None}
    assert response["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


async def test_private_metadata_is_hidden_from_its_user(
    root: GraphQLClient, environment: Environment
) -> None:
    eve = await make_client(environment, root.http, "eve", private_metadata={"debt": 7})
    document = "query ($by: UserRef) { user(by: $by) { username privateMetadata } }"
    refused_response = await eve.execute(document)
    assert refused_response["data"] == {"user": {"username": "eve", "privateMetadata": None}}
    assert refused_response["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
    response = await root(document, by={"username": "eve"})
    assert response["user"]["privateMetadata"] == {"debt": 7}


async def test_domain_admin_sees_users_of_own_domains(
    ada: GraphQLClient, environment: Environment
) -> None:
    other_user_id = await create_user_of_other_domain(environment)
    inside = await make_user(environment, "inside")
    assert ada.user.domain_id
    viewer = Viewer(
        ada.user.id,
        Role.DOMAIN_ADMIN,
        frozenset({Scope.FULL}),
        administered_domains=frozenset({ada.user.domain_id}),
    )
    user_rows = await user_loaders.load_visible_users_by_id(
        Context(environment, viewer), [ada.user.id, other_user_id, inside.id]
    )
    assert [row and row.username for row in user_rows] == ["ada", None, "inside"]
