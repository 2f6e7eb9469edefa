"""Test mailbox lists: patterns, filters, lists of several users, totals and parents."""

import random
import re
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from graph.execution.completed_rows import ROW_COUNTS
from graph.execution.resolver_plans import PLAN_COUNTERS
from graph.types import global_ids
from mail.mailboxes import paths
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.loaders import matches_pattern_sql
from tests.conftest import GraphQLClient, client_context, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.operations.mailbox_operations import (
    DEFAULT_MAILBOXES,
    append_unread_messages,
    create_mailboxes,
    delete_mailboxes,
)

MAILBOXES_QUERY = """
query ($patterns: [String!], $special: Boolean! = false, $all: Boolean! = false, $sub: Boolean,
  $first: Int, $after: String, $last: Int, $before: String) {
  user {
    mailboxes(first: $first, after: $after, last: $last, before: $before, filter: {
      patterns: $patterns, hasSpecialUse: $special, showHidden: $all, subscribed: $sub
    }) { nodes { path } totalCount pageInfo { hasNextPage hasPreviousPage startCursor endCursor } }
  }
}
"""
ALL_MAILBOXES_QUERY = """
query ($users: UserSelection, $patterns: [String!], $first: Int = 100, $after: String,
  $special: Boolean! = false, $all: Boolean! = false, $sub: Boolean) {
  mailboxes(users: $users, first: $first, after: $after, filter: {
    patterns: $patterns, hasSpecialUse: $special, showHidden: $all, subscribed: $sub }) {
    nodes { path user { username } } totalCount pageInfo { hasNextPage endCursor }
  }
}
"""


async def load_paths(client: GraphQLClient, **arguments: Any) -> list[str]:
    return [
        mailbox["path"]
        for mailbox in (await client(MAILBOXES_QUERY, **arguments))["user"]["mailboxes"]["nodes"]
    ]


async def load_all_pages(
    client: GraphQLClient, users: Any, **arguments: Any
) -> list[tuple[str, str]]:
    """Load all pages of a list as pairs of username and path."""
    entries: list[tuple[str, str]] = []
    after = None
    while True:
        page = (await client(ALL_MAILBOXES_QUERY, users=users, after=after, **arguments))[
            "mailboxes"
        ]
        entries += [(mailbox["user"]["username"], mailbox["path"]) for mailbox in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            assert page["totalCount"] == len(entries)
            return entries
        after = page["pageInfo"]["endCursor"]


async def test_mask_filters_both_mailbox_lists(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A/b/c", "a", "Inbox/x", "é(.*)")
    cases: list[tuple[list[str], list[str]]] = [
        (["*"], ["INBOX", "INBOX/x", "A", "A/b", "A/b/c", "a", "é(.*)"]),
        (["%"], ["INBOX", "A", "a", "é(.*)"]),
        (["%/%"], ["INBOX/x", "A/b"]),
        (["inbox/*"], ["INBOX/x"]),
        (["A/*"], ["A/b", "A/b/c"]),
        (["*/c", "a"], ["A/b/c", "a"]),
        (["A/*%"], ["A/b", "A/b/c"]),
        (["*b%"], ["A/b"]),
        (["é(.*)"], ["é(.*)"]),
        (["é(%"], ["é(.*)"]),
        (["\\", "[", "(?>", ""], []),
        ([], []),
    ]
    for case in each_case(cases):
        with case as (patterns, expected):
            own_paths = [
                path
                for path in await load_paths(ada, patterns=patterns)
                if path not in DEFAULT_MAILBOXES[1:]
            ]
            assert own_paths == expected
            all_paths = {
                path for _, path in await load_all_pages(ada, None, patterns=patterns)
            } - set(DEFAULT_MAILBOXES[1:])
            assert all_paths == set(expected)


async def test_mask_patterns_match_alike_in_sql_and_python(
    ada: GraphQLClient, environment: Environment
) -> None:
    generator = random.Random(7)  # noqa: S311 - reproducible
    names = ["".join(generator.choices("aB/.é", k=generator.randint(1, 8))) for _ in range(60)]
    canonical_paths = {
        paths.canonical_path(name)
        for name in names
        if all(level for level in paths.canonical_path(name).split("/"))
    }
    await mailbox_create.create_mailboxes(
        client_context(ada), NewMailboxes([name for name in canonical_paths if "/" not in name])
    )
    existing_paths = [
        row.path
        for row in await mailbox_loaders.load_visible_mailboxes_of_user(
            client_context(ada), ada.user.id, ()
        )
    ]
    for _ in range(60):
        pattern = "".join(generator.choices("aB/%*.é", k=generator.randint(1, 8)))
        pattern = paths.patterns_regex_with_atomic_groups([pattern])
        rows = await environment.database.read(
            select(col(Mailbox.path)).where(matches_pattern_sql(client_context(ada), pattern))
        )
        assert {row.path for row in rows} == {
            path for path in existing_paths if re.match(pattern, path)
        }, pattern


async def test_mailbox_list_filters_by_special_use_subscription_and_hidden(
    ada: GraphQLClient,
) -> None:
    await create_mailboxes(ada, "A", "B")
    await create_mailboxes(ada, "Secret", hidden=True)
    await create_mailboxes(ada, "Loose", subscribe=False)
    assert await load_paths(ada, special=True) == DEFAULT_MAILBOXES
    assert await load_paths(ada, sub=False) == ["Loose"]
    assert "Loose" not in await load_paths(ada, sub=True)
    assert await load_paths(ada, patterns=["S*"], all=True) == ["Secret", "Sent"]
    assert await load_paths(ada, patterns=["S*"], sub=True) == ["Sent"]


async def test_mailbox_tree_is_paged_in_both_directions(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A/b", "INBOX/x", "A-b", "a")
    await create_mailboxes(ada, "Secret", hidden=True)
    tree = ["INBOX", "INBOX/x", "A", "A/b", "A-b", *DEFAULT_MAILBOXES[1:], "a"]
    page = (await ada(MAILBOXES_QUERY))["user"]["mailboxes"]
    assert [node["path"] for node in page["nodes"]] == tree
    assert (page["totalCount"], page["pageInfo"]["hasNextPage"]) == (len(tree), False)
    forward: list[str] = []
    arguments: dict[str, Any] = {"first": 4}
    while arguments:
        page = (await ada(MAILBOXES_QUERY, **arguments))["user"]["mailboxes"]
        forward += [node["path"] for node in page["nodes"]]
        assert page["totalCount"] == len(tree)
        next_arguments = {"first": 4, "after": page["pageInfo"]["endCursor"]}
        arguments = next_arguments if page["pageInfo"]["hasNextPage"] else {}
    assert forward == tree
    backward: list[str] = []
    arguments = {"last": 3}
    while arguments:
        page = (await ada(MAILBOXES_QUERY, **arguments))["user"]["mailboxes"]
        backward = [node["path"] for node in page["nodes"]] + backward
        next_arguments = {"last": 3, "before": page["pageInfo"]["startCursor"]}
        arguments = next_arguments if page["pageInfo"]["hasPreviousPage"] else {}
    assert backward == tree
    filtered = {"special": True, "first": 2}
    page = (await ada(MAILBOXES_QUERY, **filtered))["user"]["mailboxes"]
    assert [node["path"] for node in page["nodes"]] == DEFAULT_MAILBOXES[:2]
    assert page["totalCount"] == len(DEFAULT_MAILBOXES)
    cursor = page["pageInfo"]["endCursor"]
    page = (await ada(MAILBOXES_QUERY, **filtered, after=cursor))["user"]["mailboxes"]
    assert [node["path"] for node in page["nodes"]] == DEFAULT_MAILBOXES[2:4]
    answer = await ada.execute(MAILBOXES_QUERY, first=2, after=cursor)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_CURSOR"  # of another filter


async def test_page_continues_after_the_mailbox_of_the_cursor_is_deleted(
    ada: GraphQLClient,
) -> None:
    await create_mailboxes(ada, "A", "B", "C")
    page = (await ada(MAILBOXES_QUERY, first=3))["user"]["mailboxes"]
    assert [node["path"] for node in page["nodes"]] == ["INBOX", "A", "B"]
    assert (await delete_mailboxes(ada, "B"))["errors"] == []
    cursor = page["pageInfo"]["endCursor"]
    page = (await ada(MAILBOXES_QUERY, first=2, after=cursor))["user"]["mailboxes"]
    assert [node["path"] for node in page["nodes"]] == ["C", "Drafts"]
    page = (await ada(MAILBOXES_QUERY, last=1, before=cursor))["user"]["mailboxes"]
    assert [node["path"] for node in page["nodes"]] == ["A"]


async def test_one_page_holds_a_whole_tree(
    ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    new_paths = [f"Box {number:04}" for number in range(1490)]
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(new_paths))
    del statements[:]
    page = (await ada(MAILBOXES_QUERY, first=1500))["user"]["mailboxes"]
    assert len(page["nodes"]) == page["totalCount"] == len(new_paths) + len(DEFAULT_MAILBOXES)
    assert len([statement for statement in statements if "FROM mailboxes" in statement]) == 1
    page = (await ada(MAILBOXES_QUERY))["user"]["mailboxes"]
    assert (len(page["nodes"]), page["pageInfo"]["hasNextPage"]) == (250, True)
    answer = await ada.execute(MAILBOXES_QUERY, first=1501)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_PAGINATION"
    of_ada = """{ user(by: {username: "ada"}) { mailboxes { totalCount nodes { id } }
      mailboxTotals { messageCount } } }"""
    assert (await bob(of_ada))["user"] is None


async def test_too_many_or_too_long_patterns_are_refused(ada: GraphQLClient) -> None:
    cases: list[list[str]] = [["x"] * 21, ["x" * 1001]]
    for case in each_case(cases):
        with case as patterns:
            for document in (MAILBOXES_QUERY, ALL_MAILBOXES_QUERY):
                answer = await ada.execute(
                    document, patterns=patterns, users={"usernames": ["ada"]}
                )
                assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_mailbox_totals_count_all_or_masked_mailboxes(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A", hidden=True)
    await append_unread_messages(ada, "A", "one", "two")
    await append_unread_messages(ada, "Sent", "three")
    document = """query ($filter: MailboxFilter) {
        user { mailboxTotals(filter: $filter) { messageCount unseenCount size } messageCount
               limits { quota { used } } } }"""
    user = (await ada(document, filter={"showHidden": True}))["user"]
    totals = user["mailboxTotals"]
    assert (totals["messageCount"], totals["unseenCount"]) == (3, 3)
    assert (user["messageCount"], user["limits"]["quota"]["used"]) == (3, totals["size"])
    for mailbox_filter, message_count in (
        ({"patterns": ["A"], "showHidden": True}, 2),
        ({"patterns": ["A"]}, 0),
        ({"hasSpecialUse": True}, 1),
        ({"subscribed": False}, 0),
        (None, 1),
    ):
        totals = (await ada(document, filter=mailbox_filter))["user"]["mailboxTotals"]
        assert (totals["messageCount"], totals["unseenCount"]) == (message_count, message_count)
    assert (await ada.execute(document, filter={}))["errors"][0]["extensions"]["code"] == (
        "BAD_USER_INPUT"
    )


async def test_mailboxes_of_several_users_are_filtered(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    await create_mailboxes(ada, "Loose", subscribe=False)
    await create_mailboxes(bob, "Hidden", hidden=True)
    users = {"usernames": ["ada", "bob"]}
    special = await load_all_pages(root, users, special=True)
    assert {path for _, path in special} == set(DEFAULT_MAILBOXES)
    assert await load_all_pages(root, users, sub=False) == [("ada", "Loose")]
    assert ("bob", "Hidden") not in await load_all_pages(root, users)
    assert ("bob", "Hidden") in await load_all_pages(root, users, all=True)
    assert {name for name, _ in await load_all_pages(ada, None, all=True)} == {"ada"}
    document = """query ($before: String) { mailboxes(users: {usernames: ["ada", "bob"]}, last: 2,
      before: $before) { nodes { path } pageInfo { startCursor } } }"""
    paths = [path for _, path in await load_all_pages(root, users)]
    last_page = (await root(document))["mailboxes"]
    assert [node["path"] for node in last_page["nodes"]] == paths[-2:]
    cursor = last_page["pageInfo"]["startCursor"]
    page = (await root(document, before=cursor))["mailboxes"]
    assert [node["path"] for node in page["nodes"]] == paths[-4:-2]


async def test_mailboxes_of_several_users_are_paged(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    await create_mailboxes(bob, "A/B")
    users = {"usernames": ["ada", "bob"]}
    entries = await load_all_pages(root, users, first=3)
    assert [name for name, _ in entries] == ["ada"] * 5 + ["bob"] * 7
    assert [path for _, path in entries][-2:] == ["A", "A/B"]
    assert {path for _, path in entries} == {*DEFAULT_MAILBOXES, "A", "A/B"}
    assert await load_all_pages(root, {"all": True}, patterns=["A/%"]) == [("bob", "A/B")]
    assert {path for _, path in await load_all_pages(ada, None)} == set(DEFAULT_MAILBOXES)


async def test_mailbox_list_of_other_user_needs_login_as(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await create_mailboxes(ada, "Mine")
    without_permission = await make_domain_admin(environment, ada.http, "bare", [])
    with_permission = await make_domain_admin(
        environment, ada.http, "chief", [AdminPermission.IMPERSONATE]
    )
    ada_selection = {"ids": [global_ids.encode("User", ada.user.id)]}
    assert await load_all_pages(bob, ada_selection) == []
    assert await load_all_pages(without_permission, ada_selection) == []
    assert ("ada", "Mine") in await load_all_pages(with_permission, ada_selection)
    answer = await bob.execute(ALL_MAILBOXES_QUERY, users={"usernames": ["ada"]})
    assert answer["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    answer = await with_permission.execute(ALL_MAILBOXES_QUERY, users={"all": True})
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_mailbox_list_statement_count_is_independent_of_users(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    document = """query ($names: [String!]) { users(filter: {patterns: $names}, first: 30) { nodes {
        mailboxTotals { messageCount } subscribedPaths
        all: mailboxes { nodes { path } }
        some: mailboxes(filter: {patterns: ["S*"]}) { nodes { path annotations { key value } } }
        special: mailboxes(filter: {hasSpecialUse: true}) { nodes {
          annotation(key: "/private/x") { value } } } } } }"""

    async def count_statements(pattern: str, user_count: int) -> int:
        del statements[:]
        assert len((await root(document, names=[pattern]))["users"]["nodes"]) == user_count
        return len(statements)

    for n in range(12):
        await make_client(environment, ada.http, f"user{n}")
    await count_statements("ada", 1)
    assert await count_statements("ada", 1) == await count_statements("user*", 12)


LIST_QUERY = """query ($patterns: [String!]) { viewer { user {
  mailboxes(filter: {patterns: $patterns, showHidden: false}) { nodes { id path %s } } } } }"""
PARENT_FIELDS = (
    "parentId parent { __typename id path unseenCount parent { path parentId parent { id } } }"
)


async def test_parent_is_taken_from_the_same_list(
    ada: GraphQLClient, statements: list[str]
) -> None:
    await mailbox_create.create_mailboxes(
        client_context(ada), NewMailboxes(["A/b/c", "A/d", "E/f"])
    )
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["H"], is_hidden=True))
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["H/i"]))

    async def load_list(extra: str, patterns: list[str] | None = None) -> tuple[list[Any], int]:
        del statements[:]
        user = (await ada(LIST_QUERY % extra, patterns=patterns))["viewer"]["user"]
        mailboxes = user["mailboxes"]["nodes"]
        return mailboxes, len(
            [statement for statement in statements if "FROM mailboxes" in statement]
        )

    ids_by_path = {mailbox["path"]: mailbox["id"] for mailbox in (await load_list(""))[0]}
    PLAN_COUNTERS.fallback.clear()
    for patterns, extra in ((None, 1), (["A", "A/*"], 0), (["%/%"], 3)):
        _, base_count = await load_list("", patterns)
        for _ in range(3):  # parsed, then compiled, then run by its plan
            rows, statement_count = await load_list(PARENT_FIELDS, patterns)
            # H is hidden; A, E and H don't match the last pattern
            assert statement_count == base_count + extra
            for row in rows:
                parent_path = row["path"].rpartition("/")[0]
                assert (row["parent"] and row["parent"]["path"]) == (parent_path or None)
                assert row["parentId"] == (row["parent"] and row["parent"]["id"])
                assert parent_path in ("", "H") or row["parentId"] == ids_by_path[parent_path]
    (nested_mailbox,) = [
        row for row in (await load_list(PARENT_FIELDS))[0] if row["path"] == "A/b/c"
    ]
    assert nested_mailbox["parent"]["parent"] == {"path": "A", "parentId": None, "parent": None}
    assert not PLAN_COUNTERS.fallback


async def test_only_the_id_of_the_parent_is_read_from_rows(
    ada: GraphQLClient, statements: list[str]
) -> None:
    ctx = client_context(ada)
    await mailbox_create.create_mailboxes(ctx, NewMailboxes(["A/b/c", "A/d", "E/f"]))
    await mailbox_create.create_mailboxes(ctx, NewMailboxes(["H"], is_hidden=True))
    await mailbox_create.create_mailboxes(ctx, NewMailboxes(["H/i"]))
    everything = "{ user { mailboxes(filter: {showHidden: true}) { nodes { id path } } } }"
    nodes = (await ada(everything))["user"]["mailboxes"]["nodes"]
    ids_by_path = {node["path"]: node["id"] for node in nodes}
    PLAN_COUNTERS.fallback.clear()
    ROW_COUNTS.clear()
    for patterns, extra in ((None, 1), (["A", "A/*"], 0), (["%/%"], 3)):
        counts = []
        for fields in ("", "parentId parent { id kind: __typename }"):
            for _ in range(5):  # parsed, compiled, marked, stored, and read from the cache
                del statements[:]
                answer = await ada(LIST_QUERY % fields, patterns=patterns)
                counts.append(len([text for text in statements if "FROM mailboxes" in text]))
                for node in answer["viewer"]["user"]["mailboxes"]["nodes"] if fields else ():
                    parent_id = ids_by_path.get(node["path"].rpartition("/")[0])
                    assert node["parentId"] == parent_id, node["path"]
                    assert node["parent"] == (parent_id and {"id": parent_id, "kind": "Mailbox"})
        assert counts == [counts[0]] * 5 + [counts[0] + extra] * 5, patterns
    assert not PLAN_COUNTERS.fallback
    assert ROW_COUNTS["cached"] > 2 * len(nodes)


async def test_single_mailbox_has_parent_fields(ada: GraphQLClient) -> None:
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["A/b"]))
    document = "query ($path: String!) { mailbox(by: {path: $path}) { id parentId parent { id } } }"
    parent = (await ada(document, path="A"))["mailbox"]
    assert (parent["parentId"], parent["parent"]) == (None, None)
    mailbox = (await ada(document, path="A/b"))["mailbox"]
    assert (mailbox["parentId"], mailbox["parent"]) == (parent["id"], {"id": parent["id"]})
