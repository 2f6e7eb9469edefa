"""Lists of folders: narrowed, of many users, and their sums."""

import random
import re
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.execution.resolver_plans import PLAN_COUNTERS
from graph.types import global_ids
from mail.mailboxes import paths
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes, matches_pattern_sql
from tests.conftest import Client, context, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.mailbox_operations import (
    DEFAULT_MAILBOXES,
    append_unread_messages,
    create_mailboxes,
)

LIST = """
query ($masks: [String!], $special: Boolean! = false, $all: Boolean! = false, $sub: Boolean) {
  user {
    mailboxes(masks: $masks, specialUse: $special, showHidden: $all, subscribed: $sub) { path }
  }
}
"""
MANY = """
query ($users: UserSelection, $masks: [String!], $first: Int! = 100, $after: String) {
  mailboxes(users: $users, masks: $masks, first: $first, after: $after) {
    nodes { path user { username } } totalCount pageInfo { hasNextPage endCursor }
  }
}
"""


async def listed(client: Client, **given: Any) -> list[str]:
    return [box["path"] for box in (await client(LIST, **given))["user"]["mailboxes"]]


async def pages(client: Client, users: Any, **given: Any) -> list[tuple[str, str]]:
    """All pages of a list: user name and path."""
    found: list[tuple[str, str]] = []
    after = None
    while True:
        page = (await client(MANY, users=users, after=after, **given))["mailboxes"]
        found += [(box["user"]["username"], box["path"]) for box in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            assert page["totalCount"] == len(found)
            return found
        after = page["pageInfo"]["endCursor"]


@pytest.mark.parametrize(
    ("masks", "found"),
    [
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
    ],
)
async def test_masks_narrow_lists_alike(ada: Client, masks: list[str], found: list[str]) -> None:
    await create_mailboxes(ada, "A/b/c", "a", "Inbox/x", "é(.*)")
    here = [path for path in await listed(ada, masks=masks) if path not in DEFAULT_MAILBOXES[1:]]
    assert here == found
    of_many = {path for _, path in await pages(ada, None, masks=masks)} - set(DEFAULT_MAILBOXES[1:])
    assert of_many == set(found)


async def test_stores_and_python_agree_on_masks(ada: Client, world: Environment) -> None:
    dice = random.Random(7)  # noqa: S311 - the same each time
    names = ["".join(dice.choices("aB/.é", k=dice.randint(1, 8))) for _ in range(60)]
    made = {
        paths.canonical_path(n)
        for n in names
        if all(level for level in paths.canonical_path(n).split("/"))
    }
    await mailbox_loaders.create_mailboxes(
        context(ada), NewMailboxes([n for n in made if "/" not in n])
    )
    there = [
        row.path for row in await mailbox_loaders.load_all_of_user(context(ada), ada.user.id, ())
    ]
    for _ in range(60):
        mask = "".join(dice.choices("aB/%*.é", k=dice.randint(1, 8)))
        pattern = paths.masks_pattern([mask])
        rows = await world.database.read(
            select(col(Mailbox.path)).where(matches_pattern_sql(context(ada), pattern))
        )
        assert {row.path for row in rows} == {p for p in there if re.match(pattern, p)}, mask


async def test_lists_are_narrowed_by_role_subscription_and_what_is_hidden(ada: Client) -> None:
    await create_mailboxes(ada, "A", "B")
    await create_mailboxes(ada, "Secret", hidden=True)
    await create_mailboxes(ada, "Loose", subscribe=False)
    assert await listed(ada, special=True) == DEFAULT_MAILBOXES
    assert await listed(ada, sub=False) == ["Loose"]
    assert "Loose" not in await listed(ada, sub=True)
    assert await listed(ada, masks=["S*"], all=True) == ["Secret", "Sent"]
    assert await listed(ada, masks=["S*"], sub=True) == ["Sent"]


@pytest.mark.parametrize("masks", [["x"] * 21, ["x" * 1001]])
async def test_too_many_masks_are_refused(ada: Client, masks: list[str]) -> None:
    for document in (LIST, MANY):
        answer = await ada.raw(document, masks=masks, users={"usernames": ["ada"]})
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_sums_are_of_all_folders_or_of_some(ada: Client) -> None:
    await create_mailboxes(ada, "A", hidden=True)
    await append_unread_messages(ada, "A", "one", "two")
    await append_unread_messages(ada, "Sent", "three")
    document = """query ($masks: [String!]) {
        user { mailboxTotals(masks: $masks) { total unseen size } messageCount
               limits { quota { used } } } }"""
    user = (await ada(document))["user"]
    sums = user["mailboxTotals"]
    assert (sums["total"], sums["unseen"]) == (3, 3)
    assert (user["messageCount"], user["limits"]["quota"]["used"]) == (3, sums["size"])
    sums = (await ada(document, masks=["A"]))["user"]["mailboxTotals"]
    assert (sums["total"], sums["unseen"]) == (2, 2)


async def test_folders_of_many_users_come_page_by_page(
    ada: Client, bob: Client, root: Client
) -> None:
    await create_mailboxes(bob, "A/B")
    users = {"usernames": ["ada", "bob"]}
    found = await pages(root, users, first=3)
    assert [name for name, _ in found] == ["ada"] * 5 + ["bob"] * 7
    assert [path for _, path in found][-2:] == ["A", "A/B"]
    assert {path for _, path in found} == {*DEFAULT_MAILBOXES, "A", "A/B"}
    assert await pages(root, {"all": True}, masks=["A/%"]) == [("bob", "A/B")]
    assert {path for _, path in await pages(ada, None)} == set(DEFAULT_MAILBOXES)


async def test_who_sees_the_folders_of_whom(ada: Client, bob: Client, world: Environment) -> None:
    await create_mailboxes(ada, "Mine")
    bare = await make_domain_admin(world, ada.http, "bare", [])
    chief = await make_domain_admin(world, ada.http, "chief", [AdminPermission.LOGIN_AS])
    theirs = {"ids": [global_ids.encode("User", ada.user.id)]}
    assert await pages(bob, theirs) == []
    assert await pages(bare, theirs) == []
    assert ("ada", "Mine") in await pages(chief, theirs)
    answer = await bob.raw(MANY, users={"usernames": ["ada"]})
    assert answer["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    answer = await chief.raw(MANY, users={"all": True})
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_lists_cost_the_same_for_one_user_and_for_many(
    ada: Client, root: Client, world: Environment, statements: list[str]
) -> None:
    document = """query ($names: [String!]) { users(filter: {masks: $names}, first: 30) { nodes {
        mailboxTotals { total } subscribedPaths
        all: mailboxes { path } some: mailboxes(masks: ["S*"]) { path metadata { key value } }
        special: mailboxes(specialUse: true) { metadataEntry(key: "/private/x") { value } } } } }"""

    async def cost(mask: str, many: int) -> int:
        del statements[:]
        assert len((await root(document, names=[mask]))["users"]["nodes"]) == many
        return len(statements)

    for n in range(12):
        await make_client(world, ada.http, f"user{n}")
    await cost("ada", 1)
    assert await cost("ada", 1) == await cost("user*", 12)


ABOVE = """query ($masks: [String!]) { viewer { user { mailboxes(masks: $masks) {
  id path %s } } } }"""
PARENTS = "parentId parent { __typename id path unseen parent { path parentId parent { id } } }"


async def test_folders_above_are_found_in_the_list_itself(
    ada: Client, statements: list[str]
) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["A/b/c", "A/d", "E/f"]))
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["H"], is_hidden=True))
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["H/i"]))

    async def asked(more: str, masks: list[str] | None = None) -> tuple[list[Any], int]:
        del statements[:]
        found = (await ada(ABOVE % more, masks=masks))["viewer"]["user"]["mailboxes"]
        return found, len([sent for sent in statements if "FROM mailboxes" in sent])

    known = {box["path"]: box["id"] for box in (await asked(""))[0]}
    PLAN_COUNTERS.fell.clear()
    for masks, more in ((None, 1), (["A", "A/*"], 0), (["%/%"], 3)):
        _, alone = await asked("", masks)
        for _ in range(3):  # read anew, then compiled, then by its plan
            rows, many = await asked(PARENTS, masks)
            assert many == alone + more  # H is hidden; A, E and H do not fit the last mask
            for row in rows:
                above = row["path"].rpartition("/")[0]
                assert (row["parent"] and row["parent"]["path"]) == (above or None)
                assert row["parentId"] == (row["parent"] and row["parent"]["id"])
                assert above in ("", "H") or row["parentId"] == known[above]
    (deep,) = [row for row in (await asked(PARENTS))[0] if row["path"] == "A/b/c"]
    assert deep["parent"]["parent"] == {"path": "A", "parentId": None, "parent": None}
    assert not PLAN_COUNTERS.fell


async def test_one_folder_names_the_one_above(ada: Client) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["A/b"]))
    document = "query ($path: String!) { mailbox(by: {path: $path}) { id parentId parent { id } } }"
    top = (await ada(document, path="A"))["mailbox"]
    assert (top["parentId"], top["parent"]) == (None, None)
    box = (await ada(document, path="A/b"))["mailbox"]
    assert (box["parentId"], box["parent"]) == (top["id"], {"id": top["id"]})
