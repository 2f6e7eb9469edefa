"""Mail that is imported once: archives and other accounts, whole, in part, and once more."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from mail.maintenance import housekeeping
from models.connectors import Connector
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.store.columns import select_columns
from resolvers.mailboxes import loaders as mailbox_loaders
from tests.conftest import Client, Clock, context, raw_message
from tests.support.accounts.account_exports import exported, place, told
from tests.support.accounts.import_runs import (
    MANY,
    begin,
    begun,
    counted,
    crash,
    eml_zip,
    ended,
    held,
    imported,
    maildir_tar,
    many,
    mbox,
    sent,
    upon,
    work,
)
from tests.support.accounts.user_operations import run
from tests.support.stores.counter_check import journal, reached, rows
from tests.support.stores.other_processes import taken_for_dead

pytestmark = pytest.mark.usefixtures("examined")

WAYS = list(itertools.product(["mbox", "zip", "account"], [1, 2, 3]))  # a source, units till then


# ---------------------------------------------------------------- archives


async def test_an_mbox_is_imported_and_what_is_known_stays_out(
    ada: Client, world: Environment
) -> None:
    (key,) = await begun(ada, mbox([raw_message("One"), raw_message("Two")]))
    kept = "SELECT user_id FROM import_archives"
    assert await rows(world, kept) == [(ada.user.id,)]
    await housekeeping.run_round(world)  # it leaves alone what waits
    assert await rows(world, kept) == [(ada.user.id,)]
    await work(world)
    one = await ended(ada, key)
    assert (one["state"], one["error"], one["connector"]) == ("SUCCEEDED", None, None), one["log"]
    assert counted(one) == (2, 2, 0)
    assert int(one["bytes"]) == len(raw_message("One")) + len(raw_message("Two"))
    assert await held(ada) == {"INBOX": ["One", "Two"]}
    assert await rows(world, kept) == await rows(world, "SELECT id FROM uploads") == []
    again = await imported(ada, mbox([raw_message("Two"), raw_message("Three")]))
    assert counted(again) == (2, 1, 1)
    assert await held(ada) == {"INBOX": ["One", "Two", "Three"]}


async def test_a_maildir_keeps_folders_flags_and_dates(ada: Client) -> None:
    content = maildir_tar({
        "": [("S", raw_message("Read")), ("", raw_message("New"))],
        ".Sent": [("RS", raw_message("Mine"))],
        ".Gr&APYA3w-e.Tief": [("FT", raw_message("Deep"))],
    })  # fmt: skip
    one = await imported(ada, content)
    assert (one["state"], counted(one)) == ("SUCCEEDED", (4, 4, 0)), one["log"]
    mail = (await told(ada))["mail"]
    found = {raw: (path, flags, facts[0].timestamp() > 1_700_000_000)
             for path, raw, flags, facts in mail}  # fmt: skip
    assert found[raw_message("Read")] == ("INBOX", ["\\Seen"], True)
    assert found[raw_message("New")] == ("INBOX", [], True)
    assert found[raw_message("Mine")] == ("Sent", ["\\Answered", "\\Seen"], True)
    assert found[raw_message("Deep")] == ("Größe/Tief", ["\\Deleted", "\\Flagged"], True)


async def test_what_cannot_be_read_is_told_with_its_name(ada: Client) -> None:
    content = eml_zip({
        "Deep/er/a.eml": raw_message("A"), "Deep/b.eml": raw_message("B"),
        "notes.txt": b"no mail", "c.eml": b"", "a//b/d.eml": raw_message("D"),
    })  # fmt: skip
    one = await imported(ada, content)
    assert one["state"] == "SUCCEEDED"
    assert int(one["imported"]) + int(one["skipped"]) == int(one["seen"])
    boxes = await held(ada)
    assert (boxes["Deep/er"], boxes["Deep"]) == (["A"], ["B"])  # what is above was made before
    assert any("c.eml" in line for line in one["log"]), one["log"]


async def test_an_archive_of_ours_brings_mail_to_folders_with_its_role(
    ada: Client, bob: Client
) -> None:
    done = await run(
        bob, "mailboxRename", "mailboxes { path }", mailbox={"path": "Sent"}, newPath="Gone out"
    )
    assert done["errors"] == []
    await place(ada, raw_message("Mine"), "Sent")
    archive = (await exported(ada))["content"]
    one = await imported(bob, archive)
    assert counted(one) == (1, 1, 0)
    assert await held(bob) == {"Gone out": ["Mine"]}


async def test_below_a_folder_everything_keeps_its_place(ada: Client, bob: Client) -> None:
    content = maildir_tar({"": [("", raw_message("In"))], ".Sent": [("", raw_message("Mine"))]})
    given: list[tuple[Any, str]] = [
        ({"path": "Old/mail"}, "Old/mail"),
        ({"specialUse": "TRASH"}, "Trash"),
        ({"specialUse": "INBOX"}, "INBOX"),
    ]
    expected: dict[str, list[str]] = {}
    for parent, path in given:
        one = await imported(ada, content, parentMailbox=parent)
        assert counted(one) == (2, 2, 0), one["log"]
        expected |= {f"{path}/INBOX": ["In"], f"{path}/Sent": ["Mine"]}
        assert await held(ada) == expected
    source = {"upload": await sent(ada, content)}
    theirs = (await bob("{ user { mailboxes { id } } }"))["user"]["mailboxes"][0]["id"]
    for parent in ({"path": "a//b"}, {"id": theirs}):
        done = await begin(ada, source, parentMailbox=parent)
        assert [error["path"] for error in done["errors"]] == [["parentMailbox"]]


@pytest.mark.parametrize("subscribe", [True, False])
async def test_folders_that_are_made_are_subscribed_to_where_that_is_wanted(
    ada: Client, *, subscribe: bool
) -> None:
    before = {row.path for row in await boxes(ada)}
    content = maildir_tar({".Deep.er": [("", raw_message("x"))], ".Sent": [("", raw_message("y"))]})
    await imported(ada, content, subscribe=subscribe)
    new = {row.path: row.subscribed for row in await boxes(ada) if row.path not in before}
    assert new == {"Deep": subscribe, "Deep/er": subscribe}
    assert all(row.subscribed for row in await boxes(ada) if row.path == "Sent")


async def boxes(client: Client) -> Any:
    return await mailbox_loaders.load_all_of_user(context(client), client.user.id, {"subscribed"})


async def test_two_imports_at_once_may_make_the_same_folder(ada: Client) -> None:
    for half in ("a", "b"):
        files = {f"New/{half}{n}.eml": raw_message(f"{half}{n}") for n in range(40)}
        await begun(ada, eml_zip(files))
    await work(ada.world)
    assert sorted((await held(ada))["New"]) == sorted(f"{h}{n}" for h in "ab" for n in range(40))


# ---------------------------------------------------------------- ends


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(
    "way", list(itertools.product(["mbox", "zip", "account"], [1, 2, 3])), ids=str
)
async def test_a_dead_workers_run_goes_on_where_it_was(
    ada: Client, over: Client, way: tuple[str, int]
) -> None:
    kind, nth = way
    if kind == "account":
        for name in MANY:
            await place(over, raw_message(name))
        given = {"users": {"usernames": ["ada"]}}
        done = await begin(over, {"user": {"username": "over"}}, **given)
        key, expected = done["run"]["id"], (await held(over))["INBOX"]
    else:
        files = {f"{name}.eml": raw_message(name) for name in MANY}
        (key,) = await begun(ada, many() if kind == "mbox" else eml_zip(files))
        expected = MANY
    await crash(ada.world, nth)
    await work(ada.world)
    one = await ended(ada, key)
    assert (one["state"], int(one["seen"])) == ("RUNNING", 4 * nth if nth < 3 else len(expected))
    await taken_for_dead(ada.world)
    await work(ada.world)
    one = await ended(ada, key)
    assert (one["state"], counted(one)) == (
        "SUCCEEDED", (len(expected), len(expected), 0)
    )  # fmt: skip
    assert (await held(ada))["INBOX"] == expected


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("nth", [1, 4, 6, 10])
async def test_what_was_not_stored_when_the_worker_died_comes_once(ada: Client, nth: int) -> None:
    (key,) = await begun(ada, many())
    await crash(ada.world, nth, "commit")  # bytes are safe, and no row tells of them yet
    await taken_for_dead(ada.world)
    await work(ada.world)
    assert counted(await ended(ada, key)) == (10, 10, 0)
    assert (await held(ada))["INBOX"] == MANY


@pytest.mark.usefixtures("chunked")
async def test_who_was_only_slow_stores_nothing_beside_who_took_over(
    ada: Client,
) -> None:
    (key,) = await begun(ada, many())
    others: list[asyncio.Task[None]] = []

    async def take_over() -> None:
        await taken_for_dead(ada.world)
        await work(ada.world)

    def fault(here: str) -> None:
        if here == "brought" and not others:
            others.append(asyncio.create_task(take_over()))

    await work(replace(ada.world, reach_fault_point=fault))
    await asyncio.gather(*others)
    one = await ended(ada, key)
    assert (one["state"], counted(one)) == ("SUCCEEDED", (10, 10, 0))
    assert (await held(ada))["INBOX"] == MANY


@pytest.mark.usefixtures("chunked")
async def test_its_owner_hears_of_each_unit(ada: Client, world: Environment) -> None:
    before = await reached(world, ada.user.id)
    await imported(ada, many())
    told = [kind for kind, _ in await journal(world, ada.user.id, before)]
    assert told.count(ChangeKind.CONNECTOR_CHANGED) == 1 + 1 + 3 + 1  # queued, begun, units, ended


@pytest.mark.usefixtures("chunked")
async def test_what_is_cancelled_keeps_what_has_come(ada: Client, world: Environment) -> None:
    (key,) = await begun(ada, many())
    await crash(world, 1)
    assert (await upon(ada, "connectorCancel", key))["errors"] == []
    await taken_for_dead(world)
    await work(world)
    one = await ended(ada, key)
    assert (one["state"], counted(one)) == ("CANCELLED", (4, 4, 0))
    assert (await held(ada))["INBOX"] == MANY[:4]
    assert await rows(world, "SELECT id FROM import_archives") == []


async def test_what_is_cancelled_before_it_began_never_does(
    ada: Client, world: Environment
) -> None:
    (key,) = await begun(ada, many())
    assert (await upon(ada, "connectorCancel", key))["errors"] == []
    await work(world)
    assert (await ended(ada, key))["state"] == "CANCELLED"
    assert await held(ada) == {}
    assert await rows(world, "SELECT id FROM import_archives") == []
    assert len(await rows(world, "SELECT id FROM connector_runs")) == 1


async def test_a_full_account_takes_what_fits_and_says_so(
    ada: Client, root: Client, world: Environment
) -> None:
    async def allow(quota: int) -> None:
        done = await run(root, "userUpdate", users={"usernames": ["ada"]}, set={"quota": quota})
        assert done["errors"] == []

    await allow(7000)
    one = await imported(ada, many(1000))
    assert (one["state"], one["stage"]) == ("FAILED", "STORE")
    assert one["error"].startswith("the account is full")
    stored = int(one["imported"])
    assert (await held(ada))["INBOX"] == MANY[:stored]
    assert 3 <= stored <= 6
    await allow(100_000)
    one = await imported(ada, many(1000))
    assert (one["state"], counted(one)) == ("SUCCEEDED", (10, 10 - stored, stored))
    assert (await held(ada))["INBOX"] == MANY
    assert await rows(world, "SELECT id FROM import_archives") == []


async def test_an_archive_that_was_cut_off_fails_and_says_so(ada: Client) -> None:
    whole = eml_zip({f"{name}.eml": raw_message(name) for name in MANY})
    one = await imported(ada, whole[: len(whole) // 2])
    assert (one["state"], one["stage"]) == ("FAILED", "FETCH")
    assert one["error"]


async def test_what_has_ended_keeps_its_run_for_thirty_days(
    ada: Client, clock: Clock, world: Environment
) -> None:
    key = (await imported(ada, many()))["id"]
    asked = select(*select_columns(Connector, {"secret", "bringing", "next_run_at", "run_id"}))
    (left,) = await world.database.read(asked)
    assert set(left) == {"", None}
    (waits,) = await begun(ada, many())
    clock.tick(days=29)
    await housekeeping.run_round(world)
    assert await ended(ada, key)
    clock.tick(days=2)
    assert (await housekeeping.run_round(world)).imports == 1
    assert await ended(ada, key) is None
    assert (await ended(ada, waits))["state"] == "QUEUED"
