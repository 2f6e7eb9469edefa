"""Identities: which there are, what is said of them, and who may say it."""

from typing import Any

import pytest

from graph.types import global_ids
from models.addresses.tables import AddressKind
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.submission.identity_mutations import MAX_IDENTITIES
from tests.conftest import Client, context, make_user
from tests.support.accounts.address_rows import add_domain
from tests.support.accounts.identity_operations import (
    NODE,
    SHORT,
    address,
    change,
    create,
    known,
    listed,
    made,
    readdress,
    remove,
    whitelist,
)
from tests.support.accounts.shared_mailboxes import share, team
from tests.support.accounts.user_operations import chief, id_of, run
from tests.support.stores.counter_check import journal, reached

FORWARD = AddressKind.FORWARD


async def test_each_sender_is_there_once_and_one_is_the_default(
    ada: Client, world: Environment
) -> None:
    mine = {"user_id": ada.user.id}
    key = await address(world, "a.lovelace@example.org", name="Countess", **mine)
    others: list[tuple[str, dict[str, Any]]] = [
        ("all*@example.org", {}),
        ("quiet@example.org", {"send_as": False}),
        ("off@example.org", {"active": False}),
        ("old@example.org", {"expires_at": world.now()}),
    ]
    for shown, more in others:
        await address(world, shown, **mine, **more)
    team = ["eve@example.net", "A.DA+x@Example.org"]
    lists: list[tuple[str, list[str], dict[str, Any]]] = [
        ("team@example.org", team, {"name": "The team"}),
        ("others@example.org", ["bob@example.org", "https://ada@example.org/"], {}),
        ("mute@example.org", team, {"send_as": False}),
    ]
    for shown, targets, more in lists:
        await address(world, shown, kind=FORWARD, targets=targets, **more)
    await whitelist(ada, "*@example.net", "ada.l@example.com", "ada@example.org", "example.com")
    there = await known(ada)
    assert {name: (one["name"], one["default"]) for name, one in there.items()} == {
        "a.lovelace@example.org": ("Countess", False),
        "ada.l@example.com": (None, False),
        "ada@example.org": (None, True),
        "team@example.org": ("The team", False),
    }
    assert there["a.lovelace@example.org"]["id"] == global_ids.encode("Identity", key)
    assert (await listed(ada))["totalCount"] == 4
    for one in there.values():
        assert await ada(NODE, id=one["id"]) == {"node": one}


async def test_an_implied_one_keeps_its_id_when_something_is_said_of_it(
    ada: Client, world: Environment
) -> None:
    await address(world, "team@example.org", kind=FORWARD, targets=["ada@example.org"])
    await whitelist(ada, "ada.l@example.com")
    last = await reached(world, ada.user.id)
    for shown, one in (await known(ada)).items():
        said = {"name": "Ada L.", "signatureText": "-- \nAda", "bcc": ["log@example.org"]}
        ((after,), errors) = await change(ada, one["id"], **said)
        assert (errors, after) == ([], {**one, **said})
        assert (await known(ada))[shown] == after
        assert await ada(NODE, id=one["id"]) == {"node": after}
        assert (await change(ada, one["id"], **said))[1] == []  # nothing to do
        assert (await remove(ada, one["id"]))["deletedIds"] == [one["id"]]
        assert (await known(ada))[shown] == one
        (error,) = (await remove(ada, one["id"]))["errors"]
        assert (error["code"], error["path"], error["index"]) == ("CONFLICT", ["ids"], 0)
    kinds = [kind for kind, _ in await journal(world, ada.user.id, last)]
    assert kinds == [ChangeKind.IDENTITY_CHANGED] * 6


async def test_all_can_be_said_and_taken_back(ada: Client) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Out"]))
    said = {
        "name": "Ada", "replyTo": "A.da@example.net", "default": True,
        "bcc": ["x@example.net", "X@example.net", "y@xn--bcher-kva.example"],
        "signatureText": "-- \r\nAda", "signatureHtml": "<b onclick=x>Ada</b>"
        "<script>1</script><img src='https://example.net/a.png'><img src='cid:a@b'>",
    }  # fmt: skip
    one = await made(ada, "A.da@example.org", sentMailbox={"path": "Out"}, **said)
    html = one.pop("signatureHtml")
    assert "onclick" not in html
    assert "script" not in html
    assert "https://example.net/a.png" in html
    assert "cid:a@b" in html
    assert one == {
        "id": one["id"], "name": "Ada", "address": "ada@example.org", "default": True,
        "replyTo": "A.da@example.net", "bcc": ["x@example.net", "y@bücher.example"],
        "signatureText": "-- \r\nAda", "sentMailbox": {"path": "Out"},
    }  # fmt: skip
    nothing = dict.fromkeys(("name", "replyTo", "signatureText", "signatureHtml", "sentMailbox"))
    (after,), errors = await change(ada, one["id"], **nothing, bcc=None, default=None)
    assert errors == []
    assert after == {**one, **nothing, "bcc": [], "default": True}


async def test_the_chosen_one_is_the_default_as_long_as_it_may_be_sent_as(ada: Client) -> None:
    await whitelist(ada, "a@example.com", "b@example.com")
    a = await made(ada, "a@example.com", default=True)
    b = await made(ada, "b@example.com")

    async def default() -> list[str]:
        return [shown for shown, one in (await known(ada)).items() if one["default"]]

    assert await default() == ["a@example.com"]
    assert (await change(ada, b["id"], default=True))[1] == []
    assert await default() == ["b@example.com"]
    main = (await known(ada))["ada@example.org"]
    _, ((error),) = await change(ada, a["id"], main["id"], default=True)
    assert (error["code"], error["path"]) == ("VALIDATION", ["set", "default"])
    await whitelist(ada, "a@example.com")
    assert await default() == ["ada@example.org"]
    assert set(await known(ada)) == {"a@example.com", "ada@example.org"}
    assert await ada(NODE, id=b["id"]) == {"node": None}
    await whitelist(ada, "b@example.com")
    assert await default() == ["b@example.com"]
    assert (await change(ada, b["id"], default=False))[1] == []
    assert await default() == ["ada@example.org"]
    assert (await change(ada, main["id"], default=True))[1] == []
    assert await default() == ["ada@example.org"]


async def test_one_follows_its_address_and_comes_back_with_it(
    ada: Client, world: Environment
) -> None:
    mine = {"user_id": ada.user.id}
    key = await address(world, "late@example.org", **mine)
    one = await made(ada, "late@example.org", name="Late")
    await readdress(world, key, local="early", shown="Early@example.org")
    assert (await known(ada))["Early@example.org"]["id"] == one["id"]
    again = await address(world, "late@example.org", **mine)
    assert (await known(ada))["late@example.org"]["id"] == global_ids.encode("Identity", again)
    await readdress(world, key, send_as=False)
    there = await known(ada)
    assert (there["late@example.org"]["id"], there["late@example.org"]["name"]) == (
        one["id"],
        "Late",
    )
    assert await ada(NODE, id=global_ids.encode("Identity", again)) == {"node": None}
    assert len(there) == 2
    (after,), _ = await change(ada, one["id"], name="Later")
    assert (after["id"], after["address"]) == (one["id"], "late@example.org")


async def test_one_may_be_made_of_any_address_that_may_be_sent_as(
    ada: Client, bob: Client, world: Environment
) -> None:
    await add_domain(world, "own.example", "also.example")
    await address(world, "*@own.example", user_id=ada.user.id)
    await address(world, "team@own.example", kind=FORWARD, targets=["ada@example.org"])
    await whitelist(ada, "*@example.net")
    for shown in ("any@own.example", "any@also.example", "team@also.example", "x@example.net"):
        one = await made(ada, shown)
        (error,) = (await create(ada, shown.upper()))[1]
        assert (error["code"], error["path"]) == ("CONFLICT", ["address"])
        assert (await known(ada))[shown] == one
    for wrong in ("bob@example.org", "nobody@example.org", "x@example.com"):
        (error,) = (await create(ada, wrong))[1]
        assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["address"])
    await team(bob)
    await share(bob, ada, "POST")
    one = await made(ada, "bob@example.org", name="For Bob")
    assert (await known(ada))["bob@example.org"] == one
    await share(bob, ada)
    assert "bob@example.org" not in await known(ada)


@pytest.mark.parametrize(
    ("given", "path", "index"),
    [
        ({"address": "*@own.example"}, ["address"], None),
        ({"address": "ada"}, ["address"], None),
        ({"name": "Ada\r\nBcc: x@example.net"}, ["name"], None),
        ({"name": "x" * 256}, ["name"], None),
        ({"replyTo": "a\r\nb@example.net"}, ["replyTo"], None),
        ({"bcc": ["a@example.net", "a b@example.net"]}, ["bcc"], 1),
        ({"bcc": [f"a{n}@example.net" for n in range(21)]}, ["bcc"], None),
        ({"signatureText": "ä" * (32 << 10) + "x"}, ["signatureText"], None),
        ({"signatureHtml": "x" * ((64 << 10) + 1)}, ["signatureHtml"], None),
        ({"sentMailbox": {"path": "Nowhere"}}, ["sentMailbox"], None),
    ],
)
async def test_what_cannot_be_said_is_refused(
    ada: Client, given: dict[str, Any], path: list[str], index: int | None
) -> None:
    said = {name: value for name, value in given.items() if name != "address"}
    one, (error,) = await create(ada, given.get("address", ada.address), **said)
    assert (one, error["path"], error["index"]) == (None, path, index)
    assert error["code"] == ("NOT_FOUND" if path == ["sentMailbox"] else "VALIDATION")
    key = (await known(ada))[ada.address]["id"]
    if said:
        _, (error,) = await change(ada, key, **said)
        assert (error["path"], error["index"]) == (["set", *path], index)
    _, (error,) = await change(ada, key)
    assert (error["code"], error["path"]) == ("VALIDATION", ["set"])


async def test_all_that_is_wrong_is_told_at_once(ada: Client) -> None:
    _, errors = await create(ada, ada.address, name="a\nb", replyTo="x", bcc=["y"])
    assert [error["path"] for error in errors] == [["bcc"], ["name"], ["replyTo"]]


async def test_anothers_folder_takes_no_copies(ada: Client, bob: Client) -> None:
    await team(bob)
    await share(bob, ada, "LOOKUP", "READ", "INSERT", "POST")
    theirs = global_ids.encode("Mailbox", (await bob.box("Sent")).id)
    shared_ = "{ viewer { user { sharedMailboxes { nodes { id } } } } }"
    (shared,) = (await ada(shared_))["viewer"]["user"]["sharedMailboxes"]["nodes"]
    for key in (theirs, shared["id"]):
        _, (error,) = await create(ada, ada.address, sentMailbox={"id": key})
        assert (error["code"], error["path"]) == ("NOT_FOUND", ["sentMailbox"])


async def test_there_are_not_too_many_and_lost_ones_make_room(ada: Client) -> None:
    await whitelist(ada, "*@example.net")
    for n in range(MAX_IDENTITIES):
        await made(ada, f"a{n}@example.net")
    _, (error,) = await create(ada, ada.address)
    assert (error["code"], error["limit"], error["used"]) == (
        "LIMIT_REACHED",
        MAX_IDENTITIES,
        MAX_IDENTITIES,
    )
    await whitelist(ada, "a1@example.net")
    await made(ada, ada.address)
    assert set(await known(ada)) == {"a1@example.net", ada.address}
    await whitelist(ada, "*@example.net")
    assert len(await known(ada)) == 2


async def test_pages_go_on_where_the_last_one_ended(ada: Client, world: Environment) -> None:
    for n in range(7):
        await address(world, f"{'äbC'[n % 3]}{n}@example.org", user_id=ada.user.id)
    for n in range(4):
        await address(world, f"Z{n}z@example.org", kind=FORWARD, targets=["ada@example.org"])
    await whitelist(ada, "a@example.com", "ada@example.com", "z@example.com")
    for shown in ("a@example.com", "b1@example.org", "z@example.com"):
        await made(ada, shown)
    whole = [one["address"] for one in (await listed(ada, first=50))["nodes"]]
    assert len(whole) == len(set(whole)) == 15
    for size in (1, 2, 4, 15):
        found: list[str] = []
        page: Any = {"pageInfo": {"endCursor": None, "hasNextPage": True}}
        while page["pageInfo"]["hasNextPage"]:
            page = await listed(ada, first=size, after=page["pageInfo"]["endCursor"])
            assert page["totalCount"] == 15
            assert 0 < len(page["nodes"]) <= size
            found += [one["address"] for one in page["nodes"]]
        assert found == whole


async def test_lists_of_many_cost_no_more_statements_than_of_one(
    root: Client, ada: Client, statements: list[str]
) -> None:
    document = """{ users(first: 50) { nodes { username identities(first: 5) {
      totalCount nodes { address name default bcc sentMailbox { path } } } } } }"""

    async def furnish(user_id: int, name: str) -> None:
        shown = f"list.{name}@example.org"
        await address(root.world, shown, kind=FORWARD, targets=[f"{name}@example.org"])
        for local in ("x", "y"):
            await address(root.world, f"{local}{name}@example.org", user_id=user_id)
        user = {"user": {"id": global_ids.encode("User", user_id)}, "sentMailbox": {"path": "Sent"}}
        await made(root, f"x{name}@example.org", **user)
        await made(root, shown, **user)

    async def cost() -> int:
        del statements[:]
        found = (await root(document))["users"]["nodes"]
        assert all(user["identities"]["totalCount"] == 4 for user in found)
        assert not [sent for sent in statements if "signature" in sent]
        return len([sent for sent in statements if "api_keys" not in sent])

    await furnish(ada.user.id, "ada")
    costs = [await cost()]
    for n in range(20):
        user = await make_user(ada.world, f"n{n}")
        await furnish(user.id, user.username)
    costs += [await cost(), await cost()]
    assert len(set(costs)) == 1


async def test_another_user_sees_and_changes_nothing(ada: Client, bob: Client) -> None:
    one = await made(ada, ada.address, name="Ada", signatureText="secret")
    before = await known(ada)
    assert await bob(NODE, id=one["id"]) == {"node": None}
    assert set(await known(bob)) == {bob.address}
    theirs = "query ($id: ID!) { user(by: {id: $id}) { identities { nodes { id } } } }"
    assert await bob(theirs, id=id_of(ada)) == {"user": None}
    for answer in (
        await create(bob, ada.address, user={"id": id_of(ada)}),
        await create(bob, ada.address),
        await change(bob, one["id"], name="Eve"),
    ):
        (error,) = answer[1]
        assert error["code"] in {"NOT_FOUND", "FORBIDDEN_OPERATION"}
    (error,) = (await remove(bob, one["id"]))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["ids"])
    mixed = (await known(bob))[bob.address]["id"]
    _, (error,) = await change(bob, mixed, one["id"], name="Eve")
    assert (error["code"], error["index"]) == ("NOT_FOUND", 1)
    assert (await known(bob))[bob.address]["name"] is None
    assert await known(ada) == before


async def test_administrators_say_it_of_others_within_their_charge(
    root: Client, ada: Client, world: Environment
) -> None:
    bare = await chief(root)
    whole = await chief(root, AdminPermission.BCC_MAPS, name="whole")
    await run(root, "userCreate", "user { id }", address="x@own.example", passwordDisabled=True)
    other = await chief(root, *AdminPermission, domain="own.example", name="other")
    user, key = {"user": {"id": id_of(ada)}}, global_ids.encode("Identity", 1)
    one = await made(bare, ada.address, name="Ada", **user)
    for more in ({"bcc": ["chief@example.org"]}, {"replyTo": "chief@example.org"}):
        _, (error,) = await change(bare, one["id"], **more)
        assert (error["code"], error["requires"]) == ("FORBIDDEN", "BCC_MAPS")
        (after,), errors = await change(whole, one["id"], **more)
        assert (errors, {name: after[name] for name in more}) == ([], more)
        _, (error,) = await change(other, one["id"], **more)
        assert error["code"] == "NOT_FOUND"
    assert (await change(other, key, name="x"))[1][0]["code"] == "NOT_FOUND"
    _, (error,) = await create(bare, "chief@example.org", **user)
    assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["address"])
    last = await reached(world, ada.user.id)
    assert (await remove(root, one["id"]))["errors"] == []
    assert [kind for kind, _ in await journal(world, ada.user.id, last)] == ["IDENTITY_CHANGED"]


async def test_it_goes_with_the_account_and_waits_for_one_that_may_come_back(
    ada: Client, root: Client
) -> None:
    one = await made(ada, ada.address, name="Ada")
    user = {"users": {"ids": [id_of(ada)]}, "deleteAfter": "2031-01-01T00:00:00Z"}
    document = """mutation ($d: UserDeleteInput!) { userDelete(input: $d) { errors { code } } }"""
    assert (await root(document, d=user))["userDelete"]["errors"] == []
    assert await root(NODE, id=one["id"]) == {"node": None}
    back = """mutation ($r: UserRestoreInput!) { userRestore(input: $r) { errors { code } } }"""
    assert (await root(back, r={"by": {"id": id_of(ada)}}))["userRestore"]["errors"] == []
    assert (await root(NODE, id=one["id"]))["node"] == one


async def test_the_list_is_as_short_as_it_can_be(ada: Client) -> None:
    assert await ada(SHORT) == {
        "viewer": {"user": {"identities": {"nodes": [{"address": ada.address}]}}}
    }
