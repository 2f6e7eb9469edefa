"""Whose mail may be imported by whom; what is refused, tried and repeated."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import Client, context, make_client, raw_message
from tests.support.accounts.account_exports import codes, flag, place, told
from tests.support.accounts.import_runs import (
    MANY,
    begin,
    begun,
    counted,
    crash,
    ended,
    held,
    many,
    mbox,
    sent,
    upon,
    work,
)
from tests.support.accounts.user_operations import chief, create, id_of, run
from tests.support.stores.counter_check import rows
from tests.support.stores.other_processes import taken_for_dead

pytestmark = pytest.mark.usefixtures("examined")


async def test_many_users_have_a_run_each(over: Client, ada: Client, bob: Client) -> None:
    users = {"usernames": ["bob", "ada"]}
    first, second = sorted((ada, bob), key=lambda one: one.user.id)
    keys = await begun(over, mbox([raw_message("All")]), users=users, parentMailbox={"path": "New"})
    assert len(await rows(over.world, "SELECT id FROM import_archives")) == 2
    await work(over.world)
    for client, key in zip((first, second), keys, strict=True):
        assert (await ended(client, key))["state"] == "SUCCEEDED"
        assert await held(client) == {"New/INBOX": ["All"]}
    assert await ended(first, keys[1]) is None
    assert (await ended(over, keys[1]))["state"] == "SUCCEEDED"
    assert await rows(over.world, "SELECT id FROM import_archives") == []
    assert await held(over) == {}
    await begun(over, many(), users=users, parentMailbox={"specialUse": "SENT"})
    await work(over.world)
    for client in (ada, bob):
        assert await held(client) == {"New/INBOX": ["All"], "Sent/INBOX": MANY}
    for parent in ({"id": "x"}, {"guid": "0" * 32}):
        done = await begin(over, {"upload": await sent(over, mbox([raw_message("x")]))},
                           users=users, parentMailbox=parent)  # fmt: skip
        assert codes(done)[0][1] == ["parentMailbox"]
    log = await over("{ adminLog { nodes { mutation target { __typename } } } }")
    assert [one["mutation"] for one in log["adminLog"]["nodes"]].count("mailImport") == 2 * 2


@pytest.mark.usefixtures("ada")
async def test_users_of_several_domains_share_an_archive(over: Client) -> None:
    made = await run(over, "domainCreate", "domain { name }", name="example.net")
    assert made["errors"] == []
    eve, errors = await create(over, address="eve@example.net", username="eve")
    assert errors == []
    keys = await begun(
        over, mbox([raw_message("x")]), users={"usernames": ["ada", eve["username"]]}
    )
    await work(over.world)
    for key in keys:
        assert counted(await ended(over, key)) == (1, 1, 0)


async def test_others_accounts_are_for_who_manages_them(
    ada: Client, bob: Client, root: Client, over: Client
) -> None:
    content = mbox([raw_message("x")])
    key = await chief(root, AdminPermission.SYNCJOBS)
    bare = await chief(root, AdminPermission.LOGIN_AS, name="bare")
    users = {"ids": [id_of(bob)]}
    cases = [(ada, "NOT_FOUND"), (bare, "FORBIDDEN"), (key, None), (over, None)]
    for client, code in cases:
        done = await begin(client, {"upload": await sent(client, content)}, users=users)
        assert [error["code"] for error in done["errors"]] == ([code] if code else []), client.user
        assert len(done["runs"]) == (not code)
    (another,) = await begun(bob, content)
    assert await ended(ada, another) is None
    done = await upon(ada, "connectorCancel", another)
    assert codes(done) == [("NOT_FOUND", ["ids"])]
    assert (await ended(bob, another))["state"] == "QUEUED"
    mine = {"upload": await sent(ada, content)}
    done = await begin(bob, mine)
    assert codes(done) == [("NOT_FOUND", ["source", "upload"])]
    assert await rows(ada.world, "SELECT id FROM uploads WHERE user_id = :u", u=ada.user.id)


async def test_another_account_is_brought_whole(root: Client, ada: Client, bob: Client) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Deep/er"]))
    await place(ada, raw_message("In"), seen=True, envelope_from="carol@example.com")
    await place(ada, raw_message("Mine"), "Sent")
    key = await place(ada, raw_message("Deep"), "Deep/er", at=ada.world.now() - timedelta(days=9))
    await flag(ada, key, "\\Flagged", "$work")
    gone = await place(ada, raw_message("Gone"))
    document = "mutation ($i: MessageDeleteInput!) { messageDelete(input: $i) { errors { code } } }"
    deleted = {"select": {"ids": [global_ids.encode("Message", gone)]}}
    await ada.raw(document, i=deleted)
    given = {"users": {"usernames": ["bob"]}}
    done = await begin(root, {"user": {"username": "ada"}}, **given)
    assert done["errors"] == []
    await work(root.world)
    one = await ended(bob, done["run"]["id"])
    there = await held(ada)
    assert (one["state"], int(one["imported"])) == ("SUCCEEDED", sum(map(len, there.values())))
    assert await held(bob) == there
    ours, theirs = (await told(ada))["mail"], (await told(bob))["mail"]
    facts = [
        [(path, raw, flags, at[0]) for path, raw, flags, at in mail] for mail in (ours, theirs)
    ]
    assert sorted(facts[0], key=repr) == sorted(facts[1], key=repr)
    events = await rows(root.world, "SELECT action FROM auth_events WHERE user_id = :u",
                        u=ada.user.id)  # fmt: skip
    assert ("read mail",) in events
    again = await begin(root, {"user": {"username": "ada"}}, **given)
    await work(root.world)
    assert counted(await ended(bob, again["run"]["id"])) == (
        int(one["seen"]), 0, int(one["seen"])
    )  # fmt: skip


async def test_whose_mail_may_not_be_read_is_not_imported(
    ada: Client, bob: Client, over: Client, root: Client
) -> None:
    done = await begin(ada, {"user": {"username": "bob"}})
    assert codes(done) == [("NOT_FOUND", ["source", "user"])]
    done = await begin(ada, {"user": {"username": "ada"}})
    assert codes(done) == [("VALIDATION", ["source", "user"])]
    done = await begin(over, {"user": {"username": "bob"}}, users={"usernames": ["ada"]})
    assert codes(done)[0][0] == "FORBIDDEN"
    both = {"users": {"usernames": ["ada", "bob"]}}
    done = await begin(root, {"user": {"username": "bob"}}, **both)
    assert codes(done) == [("VALIDATION", ["source", "user"])]
    assert await rows(ada.world, "SELECT id FROM connectors") == []
    await place(over, raw_message("Ours"))
    done = await begin(over, {"user": {"username": "over"}}, **both)
    assert done["errors"] == []
    await work(over.world)
    assert await held(ada) == await held(bob) == {"INBOX": ["Ours"]}


async def test_a_path_is_for_root_and_below_the_folder(
    ada: Client, over: Client, root: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "imports"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.mbox").write_bytes(many())
    (tmp_path / "outside.mbox").write_bytes(many())
    source, users = {"path": "sub/a.mbox"}, {"users": {"usernames": ["ada"]}}
    done = await begin(root, source, **users)
    assert codes(done) == [("FORBIDDEN_OPERATION", ["source", "path"])]
    object.__setattr__(ada.world, "options", replace(ada.world.options, import_folder=folder))
    for client in (ada, over):
        assert codes(await begin(client, source, **users))[0][0] == "FORBIDDEN"
    for path in ("../outside.mbox", str(tmp_path / "outside.mbox"), "none", "sub"):
        done = await begin(root, {"path": path}, **users)
        assert codes(done) == [("NOT_FOUND", ["source", "path"])], path
    done = await begin(root, source, **users)
    await work(ada.world)
    assert counted(await ended(ada, done["run"]["id"])) == (10, 10, 0)
    done = await begin(root, source, **users)
    (folder / "sub" / "a.mbox").unlink()
    await work(ada.world)
    assert (await ended(ada, done["run"]["id"]))["state"] == "FAILED"


@pytest.mark.usefixtures("chunked")
async def test_a_file_that_has_become_another_is_not_gone_on_with(
    ada: Client, root: Client, tmp_path: Path
) -> None:
    object.__setattr__(ada.world, "options", replace(ada.world.options, import_folder=tmp_path))
    (tmp_path / "a.mbox").write_bytes(many())
    done = await begin(root, {"path": "a.mbox"}, users={"usernames": ["ada"]})
    await crash(ada.world, 1)
    (tmp_path / "a.mbox").write_bytes(many(7))
    await taken_for_dead(ada.world)
    await work(ada.world)
    one = await ended(ada, done["run"]["id"])
    assert (one["state"], counted(one)) == ("FAILED", (4, 4, 0))
    assert "changed" in one["error"]


# ---------------------------------------------------------------- refused, tried, repeated


async def test_what_cannot_be_is_refused_before_anything_is_queued(
    ada: Client, world: Environment
) -> None:
    good = {"upload": await sent(ada, many())}
    bad = {"upload": await sent(ada, b"\x7fELF\0")}
    cases: list[tuple[Any, dict[str, Any], tuple[str, list[str]]]] = [
        (bad, {}, ("VALIDATION", ["source", "upload"])),
        (good, {"users": {"ids": [id_of(7)]}}, ("NOT_FOUND", ["users", "ids"])),
        (good, {"parentMailbox": {"guid": "0" * 32}}, ("NOT_FOUND", ["parentMailbox"])),
        (good, {"filter": {"uids": "1", "mailbox": {"path": "a"}}},
         ("VALIDATION", ["filter", "uids"])),
        (good, {"filter": {"not": {"or": [{"seen": True}, {"snoozed": True}]}}},
         ("VALIDATION", ["filter", "not", "or", "snoozed"])),
        (good, {"filter": {"mailbox": {"specialUse": "SENT"}}},
         ("VALIDATION", ["filter", "mailbox"])),
        (good, {"filter": {"query": "-"}}, ("VALIDATION", ["filter", "query"])),
    ]  # fmt: skip
    for source, given, refusal in cases:
        assert codes(await begin(ada, source, **given)) == [refusal]
    for source in ({}, {**good, "path": "x"}):
        answer = await ada.raw(
            "mutation ($i: MailImportInput!) { mailImport(input: $i) { errors { code } } }",
            i={"source": source},
        )
        assert answer["errors"]
    done = await begin(ada, good, filter={"and": [{"seen": True}, {"modifiedSince": "5"}]})
    assert (done["errors"][0]["constraint"], done["errors"][0]["index"]) == ("unsupported", 1)
    assert await rows(world, "SELECT id FROM connectors") == []
    assert len(await rows(world, "SELECT id FROM uploads")) == 2


async def test_tried_is_not_kept_and_repeated_is_done_once(ada: Client, world: Environment) -> None:
    source = {"upload": await sent(ada, many())}
    done = await begin(ada, source, options={"validateOnly": True})
    assert (done["errors"], len(done["runs"])) == ([], 1)
    for table in ("connectors", "connector_runs", "import_archives"):
        assert await rows(world, f"SELECT id FROM {table}") == []  # noqa: S608 - ours
    key = {"options": {"idempotencyKey": "k"}}
    first = await begin(ada, source, **key)
    again = await begin(ada, source, **key)
    assert again == {**first, "replayed": True}
    assert first["run"]["id"] == first["runs"][0]["id"]
    assert len(await rows(world, "SELECT id FROM connectors")) == 1
    assert codes(await begin(ada, source)) == [("NOT_FOUND", ["source", "upload"])]
    await work(world)
    assert (await held(ada))["INBOX"] == MANY


async def test_single_imports_are_no_connectors(ada: Client, over: Client) -> None:
    await begun(ada, many())
    for client in (ada, over):
        assert (await client("{ connectors { nodes { id } totalCount } }"))["connectors"] == {
            "nodes": [], "totalCount": 0
        }  # fmt: skip
    ((key,),) = await rows(ada.world, "SELECT id FROM connectors")
    for mutation in ("connectorRun", "connectorDelete"):
        done = await upon(ada, mutation, global_ids.encode("Connector", key))
        assert codes(done) == [("NOT_FOUND", ["ids"])]


async def test_few_imports_of_an_account_wait(ada: Client) -> None:
    for _ in range(10):
        await begun(ada, mbox([raw_message("x")]))
    done = await begin(ada, {"upload": await sent(ada, many())})
    assert codes(done) == [("LIMIT_REACHED", ["users"])]
    await work(ada.world)
    assert (await held(ada))["INBOX"].count("x") >= 1
    await begun(ada, many())


async def test_it_costs_the_same_for_many(over: Client, statements: list[str]) -> None:
    costs = []
    for number in (2, 20):
        for n in range(number):
            await make_client(over.world, over.http, f"u{number}x{n}")
        source = {"upload": await sent(over, many())}
        del statements[:]
        done = await begin(over, source, users={"masks": [f"u{number}x*"]})
        assert len(done["runs"]) == number
        costs.append(len([one for one in statements if "api_keys" not in one]))
    assert costs[0] == costs[1]
