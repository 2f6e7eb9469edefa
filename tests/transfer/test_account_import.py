"""Archives that are brought in: goes on after a crash, and what is wrong is told."""

import base64
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.runtime.environment import Environment
from resolvers.admin import tasks
from tests.conftest import Client, Clock, raw_message
from tests.support.accounts.account_exports import (
    EXPORT,
    FULL,
    TASK,
    codes,
    ended,
    exported,
    furnish,
    imported,
    node,
    place,
    told,
)
from tests.support.accounts.user_operations import run
from tests.support.run_scope import ALL
from tests.support.stores.counter_check import rows
from tests.support.stores.other_processes import taken_for_dead

pytestmark = pytest.mark.usefixtures("examined")


class Crashed(Exception):
    pass


# each format of an archive, and after how many steps the work crashes
WAYS = list(itertools.product(FULL, [1, 2, 4]) if ALL else zip(FULL, itertools.cycle([1, 2, 4])))


async def crash(world: Environment, place: str, nth: int) -> None:
    """Work on a task until it is at a place for the nth time, which its worker does not survive."""
    seen = 0

    def fault(here: str) -> None:
        nonlocal seen
        seen += here == place
        if seen == nth:
            raise Crashed

    with pytest.raises(Crashed):
        await tasks.run_next_task(replace(world, reach_fault_point=fault))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_what_crashed_goes_on_without_loss_or_repeat(
    ada: Client, bob: Client, clock: Clock, way: tuple[str, int]
) -> None:
    kind, nth = way
    await furnish(ada, clock)
    done = await run(ada, "accountExport", EXPORT, format=kind)
    await crash(ada.world, "exported", nth)
    await taken_for_dead(ada.world)
    assert await tasks.run_next_task(ada.world)
    found = await node(ada, done["export"]["id"])
    content = (await ada.http.get(found["url"])).content
    archive = {"text": base64.b64encode(content).decode()}
    given = {"archive": archive, "encoding": "BASE64", "skipKnown": nth % 2 == 1}
    done = await run(bob, "accountImport", TASK, **given)
    await crash(ada.world, "imported", nth)
    await taken_for_dead(ada.world)
    assert await tasks.run_next_task(ada.world)
    task = await ended(bob, done["task"]["id"])
    assert task["state"] == "SUCCEEDED"
    assert (await told(bob)) == (await told(ada))
    assert task["result"]["stored"] == task["done"] == len((await told(ada))["mail"])
    assert await rows(ada.world, "SELECT id FROM import_archives") == []


@pytest.mark.usefixtures("chunked")
async def test_an_import_that_is_cancelled_keeps_what_came(ada: Client, bob: Client) -> None:
    for number in range(10):
        await place(ada, raw_message(f"{number}"))
    content = (await exported(ada))["content"]
    archive = {"text": base64.b64encode(content).decode()}
    done = await run(bob, "accountImport", TASK, archive=archive, encoding="BASE64")
    await crash(ada.world, "imported", 3)
    given = {"ids": [done["task"]["id"]]}
    assert (await run(bob, "taskCancel", "tasks { state }", **given))["errors"] == []
    await taken_for_dead(ada.world)
    assert await tasks.run_next_task(ada.world)
    task = await ended(bob, done["task"]["id"])
    assert (task["state"], task["result"]["stored"]) == ("CANCELLED", 4)
    assert len((await told(bob))["mail"]) == 4
    await housekeeping.run_round(ada.world)
    assert await rows(ada.world, "SELECT id FROM import_archives") == []


async def test_a_full_account_takes_what_fits_and_says_so(
    ada: Client, bob: Client, root: Client, world: Environment
) -> None:
    for number in range(10):
        await place(ada, raw_message(f"{number}", body="y" * 1000))
    export = await exported(ada, format="MBOX")
    bobs = {"usernames": ["bob"]}
    assert (await run(root, "userUpdate", users=bobs, set={"quota": 7000}))["errors"] == []
    task = await imported(bob, export["content"])
    assert task["state"] == "FAILED"
    assert task["error"].startswith("the account is full")
    stored = task["result"]["stored"]
    there = [raw for _, raw, *_ in (await told(bob))["mail"] if b"yyy" in raw]  # not our letter
    assert stored == len(there) > 2
    assert sum(map(len, there)) <= 7000
    assert (await run(root, "userUpdate", users=bobs, set={"quota": 100_000}))["errors"] == []
    task = await imported(bob, export["content"])
    assert (task["result"]["stored"], task["result"]["known"]) == (10 - stored, stored)
    await housekeeping.run_round(world)
    assert await rows(world, "SELECT id FROM import_archives") == []


# what is wrong with an archive


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "neither an mbox file"),
        (b"\x7fELF\0\0", "neither an mbox file"),
        (b"\x1f\x8b\x08\0", "compressed as a whole"),
    ],
)
async def test_what_is_no_archive_is_refused_at_once(
    ada: Client, content: bytes, error: str
) -> None:
    archive = {"text": base64.b64encode(content).decode()}
    done = await run(ada, "accountImport", TASK, archive=archive, encoding="BASE64")
    assert codes(done) == [("VALIDATION", ["archive"])]
    assert error in done["errors"][0]["message"]
    assert await rows(ada.world, "SELECT id FROM tasks") == []


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({}, ["archive"]),
        ({"archive": {"text": "x: y\n\nz"}, "path": "a"}, ["archive"]),
        ({"archive": {"upload": global_ids.encode("Upload", 7)}}, ["archive"]),
        ({"archive": {"text": "?"}, "encoding": "BASE64"}, ["archive"]),
        ({"archive": {"text": "x: y\n\nz"}, "mailbox": "a//b"}, ["mailbox"]),
    ],
)
async def test_an_import_that_cannot_be_is_refused(
    ada: Client, given: dict[str, Any], path: list[str]
) -> None:
    done = await run(ada, "accountImport", TASK, **given)
    assert [error["path"] for error in done["errors"]] == [path]


@pytest.mark.parametrize("kind", FULL)
async def test_an_archive_that_was_cut_off_fails_and_says_how_far(
    ada: Client, bob: Client, kind: str
) -> None:
    for number in range(6):
        await place(ada, raw_message(f"{number}", body="y" * 700))
    content = (await exported(ada, format=kind))["content"]
    task = await imported(bob, content[: len(content) // 2 + 1000])
    assert task["state"] == "FAILED"
    assert "cut off" in task["error"]
    there = (await told(bob))["mail"]
    assert (task["result"] or {}).get("stored", 0) == len(there)
    assert len(there) > 1 or kind == "EML_ZIP"


async def test_what_cannot_be_brought_in_is_told_one_by_one(ada: Client) -> None:
    line = {"kind": "message", "receivedAt": "2030-01-01T00:00:00Z", "mailbox": "INBOX"}
    source = base64.b64encode(raw_message("x")).decode()
    records: list[dict[str, Any]] = [
        {"kind": "account", "format": "merganser", "version": 1, "mailboxes": [
            {"path": "a//b"}, {"path": "Junk mail"}, {"path": "Sent too", "specialUse": "SENT"},
        ], "settings": {"name": 5, "language": "no such language!", "spam_level": 7,
                        "password": "x"},
         "keyValues": [{"store": "none", "key": "a", "value": "b"}, {}]},
        {**line, "source": source},
        {**line, "source": source, "mailbox": "x/../\0"},
        {**line, "source": source, "flags": ["\\Nonsense"]},
        {**line, "source": source, "flags": [f"k{n}" for n in range(65)]},
        {**line, "source": source, "sha256": "0" * 64},
        {**line, "source": "?"},
        {"kind": "end"},
    ]  # fmt: skip
    content = b"\n".join(json.dumps(one).encode() for one in records) + b"\n"
    task = await imported(ada, content)
    assert (task["state"], task["result"]["stored"], task["done"]) == ("SUCCEEDED", 1, 6)
    refused = dict(task["result"]["refused"])
    assert {"folder a//b", "role SENT of folder Sent too", "setting name", "setting language",
            "value a", "value None"} <= set(refused)  # fmt: skip
    assert len(task["result"]["refused"]) == 6 + 5
    assert "password" not in str(refused)
    many = {"kind": "account", "format": "merganser", "version": 1}
    boxes = [{"path": f"F{n}"} for n in range(30)]
    object.__setattr__(ada.world, "options", replace(ada.world.options, max_mailboxes=12))
    content = json.dumps({**many, "mailboxes": boxes}).encode() + b'\n{"kind": "end"}\n'
    task = await imported(ada, content)
    assert task["result"]["refused"] == [["folder F13", "too many folders"]]
    boxes *= 400
    task = await imported(ada, json.dumps({**many, "mailboxes": boxes}).encode() + b"\n")
    assert (task["state"], task["done"]) == ("FAILED", 0)
    assert "more than 10000 folders" in task["error"]
    paths = [path for path, *_ in (await told(ada))["boxes"]]
    assert "Sent too" in paths
    assert "a//b" not in paths


# files on the server


async def test_a_path_is_for_root_and_below_the_folder(
    ada: Client, root: Client, tmp_path: Path
) -> None:
    world = ada.world
    folder, outside = tmp_path / "imports", tmp_path / "outside.mbox"
    (folder / "sub").mkdir(parents=True)
    mbox = b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
    outside.write_bytes(mbox)
    (folder / "sub" / "a.mbox").write_bytes(mbox)
    (folder / "link.mbox").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    given = {"user": {"username": "ada"}, "path": "sub/a.mbox"}
    done = await run(root, "accountImport", TASK, **given)
    assert codes(done) == [("FORBIDDEN_OPERATION", ["path"])]  # no folder is set
    object.__setattr__(world, "options", replace(world.options, import_folder=folder))
    assert codes(await run(ada, "accountImport", TASK, path="sub/a.mbox"))[0][0] == "FORBIDDEN"
    for path in ("../outside.mbox", str(outside), "link.mbox", "up/outside.mbox", "none", "sub",
                 "pipe", "/etc/passwd", "x" * 5000):  # fmt: skip
        done = await run(root, "accountImport", TASK, **{**given, "path": path})
        assert codes(done) == [("NOT_FOUND", ["path"])], path
    done = await run(root, "accountImport", TASK, **given)
    assert done["errors"] == []
    assert await tasks.run_next_task(world)
    assert (await ended(ada, done["task"]["id"]))["result"]["stored"] == 1
    done = await run(root, "accountImport", TASK, **given)
    (folder / "sub" / "a.mbox").unlink()
    (folder / "sub" / "a.mbox").symlink_to(outside)  # since it was looked at
    assert await tasks.run_next_task(world)
    assert (await ended(ada, done["task"]["id"]))["state"] == "FAILED"


async def test_an_upload_is_brought_in_and_gone(ada: Client, world: Environment) -> None:
    mbox = b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n\n" * 300
    sent = await ada.http.post("/rest/uploads", content=mbox, headers=ada.headers)
    given = {"archive": {"upload": sent.json()["id"]}, "skipKnown": False}
    checked = await run(ada, "accountImport", TASK, **given, options={"validateOnly": True})
    assert checked["errors"] == []
    done = await run(ada, "accountImport", TASK, **given)
    assert done["errors"] == []
    assert await rows(world, "SELECT id FROM uploads") == []
    assert codes(await run(ada, "accountImport", TASK, **given)) == [("NOT_FOUND", ["archive"])]
    assert await tasks.run_next_task(world)
    assert (await ended(ada, done["task"]["id"]))["result"]["stored"] == 300
    assert await rows(world, "SELECT id FROM import_archives") == []
