"""Account imports: continuation after a crash, invalid archives and paths."""

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
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.import_runs import eml_zip
from tests.support.accounts.user_exports import (
    EXPORT_FIELDS,
    FEW_LEVELS,
    FULL_EXPORT_FORMATS,
    TASK_FIELDS,
    error_codes_and_paths,
    export_account,
    fill_account,
    import_account,
    load_account_state,
    load_export,
    load_task,
    store_raw_message,
)
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.run_scope import RUNS_ALL_TESTS
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import deregister_as_dead

pytestmark = pytest.mark.usefixtures("verify_consistency")


class SimulatedCrash(Exception):
    pass


# each archive format, and the number of steps before the crash
CRASH_CASES = list(
    itertools.product(FULL_EXPORT_FORMATS, [1, 2, 4])
    if RUNS_ALL_TESTS
    else zip(FULL_EXPORT_FORMATS, itertools.cycle([1, 2, 4]))
)


async def crash_task(environment: Environment, fault_point: str, hit_number: int) -> None:
    """Run a task until it reaches a fault point for the nth time, and crash there."""
    reached_count = 0

    def reach_fault_point(reached_point: str) -> None:
        nonlocal reached_count
        reached_count += reached_point == fault_point
        if reached_count == hit_number:
            raise SimulatedCrash

    with pytest.raises(SimulatedCrash):
        await tasks.run_next_task(replace(environment, reach_fault_point=reach_fault_point))


@pytest.mark.usefixtures("small_transfer_chunks")
@pytest.mark.parametrize("crash_case", CRASH_CASES, ids=str)
async def test_crashed_export_and_import_continue_without_loss(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock, crash_case: tuple[str, int]
) -> None:
    archive_format, step_number = crash_case
    await fill_account(ada, clock, levels=FEW_LEVELS)
    payload = await execute_mutation(ada, "userExport", EXPORT_FIELDS, format=archive_format)
    await crash_task(ada.environment, "exported", step_number)
    await deregister_as_dead(ada.environment)
    assert await tasks.run_next_task(ada.environment)
    export = await load_export(ada, payload["userExport"]["id"])
    content = (await ada.http.get(export["url"])).content
    archive = {"text": base64.b64encode(content).decode()}
    arguments = {"archive": archive, "encoding": "BASE64", "skipKnown": step_number % 2 == 1}
    payload = await execute_mutation(bob, "userImport", TASK_FIELDS, **arguments)
    await crash_task(ada.environment, "imported", step_number)
    await deregister_as_dead(ada.environment)
    assert await tasks.run_next_task(ada.environment)
    task = await load_task(bob, payload["task"]["id"])
    assert task["state"] == "SUCCEEDED"
    assert (await load_account_state(bob)) == (await load_account_state(ada))
    assert (
        task["result"]["storedCount"]
        == task["doneCount"]
        == len((await load_account_state(ada))["mail"])
    )
    assert await select_rows(ada.environment, "SELECT id FROM import_archives") == []


@pytest.mark.usefixtures("small_transfer_chunks")
async def test_cancelled_import_keeps_stored_messages(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    for number in range(10):
        await store_raw_message(ada, raw_message(f"{number}"))
    content = (await export_account(ada))["content"]
    archive = {"text": base64.b64encode(content).decode()}
    payload = await execute_mutation(
        bob, "userImport", TASK_FIELDS, archive=archive, encoding="BASE64"
    )
    await crash_task(ada.environment, "imported", 3)
    arguments = {"tasks": [{"id": payload["task"]["id"]}]}
    assert (await execute_mutation(bob, "taskCancel", "tasks { state }", **arguments))[
        "errors"
    ] == []
    await deregister_as_dead(ada.environment)
    assert await tasks.run_next_task(ada.environment)
    task = await load_task(bob, payload["task"]["id"])
    assert (task["state"], task["result"]["storedCount"]) == ("CANCELLED", 4)
    assert len((await load_account_state(bob))["mail"]) == 4
    await housekeeping.run_housekeeping_round(ada.environment)
    assert await select_rows(ada.environment, "SELECT id FROM import_archives") == []


async def test_full_account_imports_what_fits_and_fails(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    for number in range(10):
        await store_raw_message(ada, raw_message(f"{number}", body="y" * 1000))
    export = await export_account(ada, format="MBOX")
    bob_selection = {"usernames": ["bob"]}
    assert (await execute_mutation(root, "userUpdate", users=bob_selection, set={"quota": 7000}))[
        "errors"
    ] == []
    task = await import_account(bob, export["content"])
    assert task["state"] == "FAILED"
    assert task["error"].startswith("The account is full")
    stored = task["result"]["storedCount"]
    # without the message about the quota
    stored_messages = [
        raw for _, raw, *_ in (await load_account_state(bob))["mail"] if b"yyy" in raw
    ]
    assert stored == len(stored_messages) > 2
    assert sum(map(len, stored_messages)) <= 7000
    assert (
        await execute_mutation(root, "userUpdate", users=bob_selection, set={"quota": 100_000})
    )["errors"] == []
    task = await import_account(bob, export["content"])
    assert (task["result"]["storedCount"], task["result"]["knownCount"]) == (10 - stored, stored)
    await housekeeping.run_housekeeping_round(environment)
    assert await select_rows(environment, "SELECT id FROM import_archives") == []


INVALID_ARCHIVES = [
    (b"", "The file is not an mbox file, Maildir or supported archive."),
    (b"\x7fELF\0\0", "The file is not an mbox file, Maildir or supported archive."),
    (b"\x1f\x8b\x08\0", "compressed as a whole"),
]
INVALID_IMPORTS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["archive"]),
    ({"archive": {"text": "x: y\n\nz"}, "path": "a"}, ["archive"]),
    ({"archive": {"upload": global_ids.encode("Upload", 7)}}, ["archive"]),
    ({"archive": {"text": "?"}, "encoding": "BASE64"}, ["archive"]),
    ({"archive": {"text": "x: y\n\nz"}, "mailbox": {"path": "a//b"}}, ["mailbox"]),
]


async def test_invalid_import_is_refused_at_once(ada: GraphQLClient) -> None:
    for archive_case in each_case(INVALID_ARCHIVES):
        with archive_case as (content, error):
            archive = {"text": base64.b64encode(content).decode()}
            payload = await execute_mutation(
                ada, "userImport", TASK_FIELDS, archive=archive, encoding="BASE64"
            )
            assert error_codes_and_paths(payload) == [("VALIDATION", ["archive"])]
            assert error in payload["errors"][0]["message"]
            assert await select_rows(ada.environment, "SELECT id FROM tasks") == []
    for case in each_case(INVALID_IMPORTS):
        with case as (arguments, path):
            payload = await execute_mutation(ada, "userImport", TASK_FIELDS, **arguments)
            assert [error["path"] for error in payload["errors"]] == [path]


@pytest.mark.parametrize("archive_format", FULL_EXPORT_FORMATS)
async def test_truncated_archive_fails_and_reports_progress(
    ada: GraphQLClient, bob: GraphQLClient, archive_format: str
) -> None:
    for number in range(6):
        await store_raw_message(ada, raw_message(f"{number}", body="y" * 700))
    content = (await export_account(ada, format=archive_format))["content"]
    task = await import_account(bob, content[: len(content) // 2 + 1000])
    assert task["state"] == "FAILED"
    assert "truncated" in task["error"]
    messages = (await load_account_state(bob))["mail"]
    assert (task["result"] or {}).get("storedCount", 0) == len(messages)
    assert len(messages) > 1 or archive_format == "EML_ZIP"


async def test_each_refused_record_is_reported(ada: GraphQLClient) -> None:
    message_record = {"kind": "message", "receivedAt": "2030-01-01T00:00:00Z", "mailbox": "INBOX"}
    source = base64.b64encode(raw_message("x")).decode()
    records: list[dict[str, Any]] = [
        {"kind": "account", "format": "merganser", "version": 1, "mailboxes": [
            {"path": "a//b"}, {"path": "Junk mail"}, {"path": "Sent too", "specialUse": "SENT"},
        ], "settings": {"name": 5, "language": "no such language!", "spam_level": 7,
                        "password": "x"},
         "keyValues": [{"store": "none", "key": "a", "value": "b"}, {}]},
        {**message_record, "source": source},
        {**message_record, "source": source, "mailbox": "x/../\0"},
        {**message_record, "source": source, "flags": ["\\Nonsense"]},
        {**message_record, "source": source, "flags": [f"k{n}" for n in range(65)]},
        {**message_record, "source": source, "sha256": "0" * 64},
        {**message_record, "source": "?"},
        {"kind": "end"},
    ]  # fmt: skip
    content = b"\n".join(json.dumps(record).encode() for record in records) + b"\n"
    task = await import_account(ada, content)
    assert (task["state"], task["result"]["storedCount"], task["doneCount"]) == ("SUCCEEDED", 1, 6)
    refused = dict(task["result"]["refused"])
    assert {"mailbox a//b", "special use SENT of mailbox Sent too", "setting name",
            "setting language",
            "value a", "value None"} <= set(refused)  # fmt: skip
    assert len(task["result"]["refused"]) == 6 + 5
    assert "password" not in str(refused)
    account_record = {"kind": "account", "format": "merganser", "version": 1}
    mailboxes = [{"path": f"F{n}"} for n in range(30)]
    object.__setattr__(
        ada.environment, "options", replace(ada.environment.options, mailboxes_max_per_user=12)
    )
    content = (
        json.dumps({**account_record, "mailboxes": mailboxes}).encode() + b'\n{"kind": "end"}\n'
    )
    task = await import_account(ada, content)
    assert task["result"]["refused"] == [
        ["mailbox F13", "The account has reached its limit of mailboxes."]
    ]
    mailboxes *= 400
    task = await import_account(
        ada, json.dumps({**account_record, "mailboxes": mailboxes}).encode() + b"\n"
    )
    assert (task["state"], task["doneCount"]) == ("FAILED", 0)
    assert "The archive has more than 10000 mailboxes or other items." in task["error"]
    paths = [path for path, *_ in (await load_account_state(ada))["boxes"]]
    assert "Sent too" in paths
    assert "a//b" not in paths


async def test_entries_of_an_archive_with_nul_are_not_imported(ada: GraphQLClient) -> None:
    nul = "a\0b"
    search = {"query": "duck"}
    account = {
        "kind": "account", "format": "merganser", "version": 1,
        "settings": {"name": nul, "public_metadata": {"x": [nul]}, "forward_to": [nul]},
        "keyValues": [{"store": "", "key": nul, "value": "v"}, {"key": "k", "value": nul}],
        "labels": [{"keyword": "nul", "name": nul}, {"keyword": nul, "name": "Nul"}],
        "senderRules": [{"pattern": nul, "action": "ALLOW"}],
        "savedSearches": [{"name": nul, **search}, {"name": "x", "query": nul},
                          {"name": "last day", "query": "on:9999-12-31"}],
        "identities": [{"address": ada.address, "name": nul}],
        "filters": [
            {"name": nul, "query": search, "action": {"markSeen": True}},
            {"name": "a", "query": {"subject": nul}, "action": {"markSeen": True}},
            {"name": "b", "query": search, "action": {"addKeywords": [nul]}},
            {"name": "c", "query": search, "action": {"markSeen": True}, "metadata": {nul: 1}},
        ],
        "autoreply": {"subject": nul, "text": nul, "active": True},
        "sieveScripts": [{"name": nul, "script": "keep;"}, {"name": "s", "script": f"# {nul}"}],
        "subscriptions": [nul],
    }  # fmt: skip
    # settings, items of lists, the autoreply and messages
    nul_count = 3 + (2 + 2 + 1 + 2 + 1 + 4 + 2 + 1) + 1 + 4
    source = base64.b64encode(raw_message("x")).decode()
    message = {"kind": "message", "receivedAt": "2030-01-01T00:00:00Z", "mailbox": "INBOX",
               "source": source}  # fmt: skip
    records = [account, {**message, "metadata": {"x": nul}}, {**message, "envelopeFrom": nul},
               {**message, "envelopeTo": [nul]}, {**message, "flags": [nul]}, message,
               {"kind": "end"}]  # fmt: skip
    task = await import_account(ada, b"".join(json.dumps(r).encode() + b"\n" for r in records))
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    assert task["result"]["storedCount"] == 1
    refused = dict(task["result"]["refused"])
    assert {"saved search last day", "setting name", "filters[3]", "autoreply"} <= refused.keys()
    assert len(task["result"]["refused"]) == nul_count + 1
    for text in (str(task), str(await load_account_state(ada))):
        assert "\\x00" not in text


async def test_path_needs_root_and_the_import_folder(
    ada: GraphQLClient, root: GraphQLClient, tmp_path: Path
) -> None:
    environment = ada.environment
    folder, outside = tmp_path / "imports", tmp_path / "outside.mbox"
    (folder / "sub").mkdir(parents=True)
    mbox = b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
    outside.write_bytes(mbox)
    (folder / "sub" / "a.mbox").write_bytes(mbox)
    (folder / "link.mbox").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    arguments = {"user": {"username": "ada"}, "path": "sub/a.mbox"}
    payload = await execute_mutation(root, "userImport", TASK_FIELDS, **arguments)
    # no folder is configured
    assert error_codes_and_paths(payload) == [("FORBIDDEN_OPERATION", ["path"])]
    object.__setattr__(environment, "options", replace(environment.options, import_folder=folder))
    assert (
        error_codes_and_paths(
            await execute_mutation(ada, "userImport", TASK_FIELDS, path="sub/a.mbox")
        )[0][0]
        == "FORBIDDEN"
    )
    for path in ("../outside.mbox", str(outside), "link.mbox", "up/outside.mbox", "none", "sub",
                 "pipe", "/etc/passwd", "x" * 5000):  # fmt: skip
        payload = await execute_mutation(
            root, "userImport", TASK_FIELDS, **{**arguments, "path": path}
        )
        assert error_codes_and_paths(payload) == [("NOT_FOUND", ["path"])], path
    payload = await execute_mutation(root, "userImport", TASK_FIELDS, **arguments)
    assert payload["errors"] == []
    assert await tasks.run_next_task(environment)
    assert (await load_task(ada, payload["task"]["id"]))["result"]["storedCount"] == 1
    payload = await execute_mutation(root, "userImport", TASK_FIELDS, **arguments)
    (folder / "sub" / "a.mbox").unlink()
    (folder / "sub" / "a.mbox").symlink_to(outside)  # replaced after the check
    assert await tasks.run_next_task(environment)
    assert (await load_task(ada, payload["task"]["id"]))["state"] == "FAILED"


async def test_imported_upload_is_deleted(ada: GraphQLClient, environment: Environment) -> None:
    mbox = b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n\n" * 300
    upload_response = await ada.http.post("/rest/uploads", content=mbox, headers=ada.headers)
    arguments = {"archive": {"upload": upload_response.json()["id"]}, "skipKnown": False}
    validated = await execute_mutation(
        ada, "userImport", TASK_FIELDS, **arguments, options={"validateOnly": True}
    )
    assert validated["errors"] == []
    payload = await execute_mutation(ada, "userImport", TASK_FIELDS, **arguments)
    assert payload["errors"] == []
    assert await select_rows(environment, "SELECT id FROM uploads") == []
    assert error_codes_and_paths(
        await execute_mutation(ada, "userImport", TASK_FIELDS, **arguments)
    ) == [("NOT_FOUND", ["archive"])]
    assert await tasks.run_next_task(environment)
    assert (await load_task(ada, payload["task"]["id"]))["result"]["storedCount"] == 300
    assert await select_rows(environment, "SELECT id FROM import_archives") == []


NO_MESSAGE = "The archive has no message that can be imported."


FILES_WITHOUT_MESSAGE: list[tuple[dict[str, bytes], str]] = [
    ({}, NO_MESSAGE),
    ({"__MACOSX/._a.eml": b"x"}, NO_MESSAGE),
    (
        {"notes.txt": b"x"},
        f"{NO_MESSAGE} notes.txt: The file is neither an .eml file, an mbox file nor a file of "
        "a Maildir.",
    ),
    ({"a.eml": b"no header\n"}, f"{NO_MESSAGE} a.eml: The message has no header fields."),
]


async def test_archive_without_message_fails_with_a_reason(ada: GraphQLClient) -> None:
    for case in each_case(FILES_WITHOUT_MESSAGE):
        with case as (files, error):
            task = await import_account(ada, eml_zip(files))
            assert (task["state"], task["error"]) == ("FAILED", error)
            assert len((task["result"] or {}).get("refused", [])) == (error != NO_MESSAGE)


async def test_mbox_in_zip_is_imported_after_a_crash(ada: GraphQLClient) -> None:
    mbox = b"".join(
        b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: %d\n\nx\n\n" % number
        for number in range(100)
    )
    archive = {"text": base64.b64encode(eml_zip({"Takeout/Mail/Old.mbox": mbox})).decode()}
    payload = await execute_mutation(
        ada, "userImport", TASK_FIELDS, archive=archive, encoding="BASE64", skipKnown=False
    )
    await crash_task(ada.environment, "imported", 2)
    await deregister_as_dead(ada.environment)
    assert await tasks.run_next_task(ada.environment)
    task = await load_task(ada, payload["task"]["id"])
    assert (task["state"], task["result"]["storedCount"]) == ("SUCCEEDED", 100)
    rows = await select_rows(ada.environment, "SELECT subject FROM messages ORDER BY uid")
    assert [row[0] for row in rows] == [f"{number}" for number in range(100)]


async def test_import_of_messages_with_byte_order_mark_has_their_fields(
    ada: GraphQLClient,
) -> None:
    bom = b"\xef\xbb\xbf"
    mbox = b"".join(
        b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: %d\n\nx\n\n" % number
        for number in range(2)
    )
    files = {"a.eml": bom + b"Subject: 2\r\nFrom: a@b.example\r\n\r\nx"}
    for content, count in ((bom + mbox, 2), (eml_zip(files), 1)):
        task = await import_account(ada, content)
        assert (task["state"], task["result"]["storedCount"]) == ("SUCCEEDED", count)
    rows = await select_rows(ada.environment, "SELECT subject FROM messages ORDER BY id")
    assert [row[0] for row in rows] == ["0", "1", "2"]
