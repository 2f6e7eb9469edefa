"""One-time mail imports of archives and accounts: content, crashes, cancelling and limits."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from mail.maintenance import housekeeping
from models.connectors import Connector
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.runtime.worker_stop import create_worker_task
from models.store.columns import select_columns
from resolvers.connectors import worker as connector_worker
from resolvers.mailboxes import loaders as mailbox_loaders
from tests.conftest import GraphQLClient, ManualClock, client_context, raw_message
from tests.support.accounts.import_runs import (
    TEN_SUBJECTS,
    crash_worker,
    eml_zip,
    import_archive,
    load_run,
    load_subjects_by_mailbox,
    maildir_tar,
    mbox_file,
    message_counts,
    run_due_imports,
    run_mutation_on_id,
    start_import,
    start_import_runs,
    ten_message_mbox,
    upload_content,
)
from tests.support.accounts.user_exports import (
    export_account,
    load_account_state,
    store_raw_message,
)
from tests.support.accounts.user_operations import execute_mutation
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)
from tests.support.stores.other_processes import deregister_as_dead

pytestmark = pytest.mark.usefixtures("verify_consistency")

# a source, and the number of finished steps
CRASH_CASES = list(itertools.product(["mbox", "zip", "account"], [1, 2, 3]))


async def test_mbox_import_skips_known_messages(
    ada: GraphQLClient, environment: Environment
) -> None:
    (run_id,) = await start_import_runs(ada, mbox_file([raw_message("One"), raw_message("Two")]))
    statement_text = "SELECT user_id FROM import_archives"
    assert await select_rows(environment, statement_text) == [(ada.user.id,)]
    await housekeeping.run_housekeeping_round(environment)  # keeps archives of waiting runs
    assert await select_rows(environment, statement_text) == [(ada.user.id,)]
    await run_due_imports(environment)
    import_run = await load_run(ada, run_id)
    assert (import_run["state"], import_run["error"], import_run["connector"]) == (
        "SUCCEEDED",
        None,
        None,
    ), import_run["log"]
    assert message_counts(import_run) == (2, 2, 0)
    assert int(import_run["size"]) == len(raw_message("One")) + len(raw_message("Two"))
    assert await load_subjects_by_mailbox(ada) == {"INBOX": ["One", "Two"]}
    assert (
        await select_rows(environment, statement_text)
        == await select_rows(environment, "SELECT id FROM uploads")
        == []
    )
    repeated = await import_archive(ada, mbox_file([raw_message("Two"), raw_message("Three")]))
    assert message_counts(repeated) == (2, 1, 1)
    assert await load_subjects_by_mailbox(ada) == {"INBOX": ["One", "Two", "Three"]}


async def test_maildir_import_keeps_folders_flags_and_dates(ada: GraphQLClient) -> None:
    content = maildir_tar({
        "": [("S", raw_message("Read")), ("", raw_message("New"))],
        ".Sent": [("RS", raw_message("Mine"))],
        ".Gr&APYA3w-e.Tief": [("FT", raw_message("Deep"))],
    })  # fmt: skip
    import_run = await import_archive(ada, content)
    assert (import_run["state"], message_counts(import_run)) == ("SUCCEEDED", (4, 4, 0)), (
        import_run["log"]
    )
    messages = (await load_account_state(ada))["mail"]
    facts_by_raw = {raw: (path, flags, facts[0].timestamp() > 1_700_000_000)
             for path, raw, flags, facts in messages}  # fmt: skip
    assert facts_by_raw[raw_message("Read")] == ("INBOX", ["\\Seen"], True)
    assert facts_by_raw[raw_message("New")] == ("INBOX", [], True)
    assert facts_by_raw[raw_message("Mine")] == ("Sent", ["\\Answered", "\\Seen"], True)
    assert facts_by_raw[raw_message("Deep")] == ("Größe/Tief", ["\\Deleted", "\\Flagged"], True)


async def test_unreadable_file_is_logged_with_its_name(ada: GraphQLClient) -> None:
    content = eml_zip({
        "Deep/er/a.eml": raw_message("A"), "Deep/b.eml": raw_message("B"),
        "notes.txt": b"no mail", "c.eml": b"", "a//b/d.eml": raw_message("D"),
    })  # fmt: skip
    import_run = await import_archive(ada, content)
    assert import_run["state"] == "SUCCEEDED"
    assert int(import_run["importedCount"]) + int(import_run["skippedCount"]) == int(
        import_run["seenCount"]
    )
    subjects_by_path = await load_subjects_by_mailbox(ada)
    # the parent folder was created first
    assert (subjects_by_path["Deep/er"], subjects_by_path["Deep"]) == (["A"], ["B"])
    assert any("c.eml" in line for line in import_run["log"]), import_run["log"]


async def test_exported_archive_is_imported_by_special_use(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    payload = await execute_mutation(
        bob, "mailboxRename", "mailboxes { path }", mailbox={"path": "Sent"}, newPath="Gone out"
    )
    assert payload["errors"] == []
    await store_raw_message(ada, raw_message("Mine"), "Sent")
    archive = (await export_account(ada))["content"]
    import_run = await import_archive(bob, archive)
    assert message_counts(import_run) == (1, 1, 0)
    assert await load_subjects_by_mailbox(bob) == {"Gone out": ["Mine"]}


async def test_parent_mailbox_keeps_the_folder_tree(ada: GraphQLClient, bob: GraphQLClient) -> None:
    content = maildir_tar({"": [("", raw_message("In"))], ".Sent": [("", raw_message("Mine"))]})
    parents: list[tuple[Any, str]] = [
        ({"path": "Old/mail"}, "Old/mail"),
        ({"specialUse": "TRASH"}, "Trash"),
        ({"specialUse": "INBOX"}, "INBOX"),
    ]
    expected: dict[str, list[str]] = {}
    for parent, path in parents:
        import_run = await import_archive(ada, content, parentMailbox=parent)
        assert message_counts(import_run) == (2, 2, 0), import_run["log"]
        expected |= {f"{path}/INBOX": ["In"], f"{path}/Sent": ["Mine"]}
        assert await load_subjects_by_mailbox(ada) == expected
    source = {"upload": await upload_content(ada, content)}
    user = (await bob("{ user { mailboxes(first: 1) { nodes { id } } } }"))["user"]
    bobs_mailbox_id = user["mailboxes"]["nodes"][0]["id"]
    for parent in ({"path": "a//b"}, {"id": bobs_mailbox_id}):
        payload = await start_import(ada, source, parentMailbox=parent)
        assert [error["path"] for error in payload["errors"]] == [["parentMailbox"]]


@pytest.mark.parametrize("subscribe", [True, False])
async def test_subscribe_option_applies_to_created_folders(
    ada: GraphQLClient, *, subscribe: bool
) -> None:
    before = {row.path for row in await load_mailboxes(ada)}
    content = maildir_tar({".Deep.er": [("", raw_message("x"))], ".Sent": [("", raw_message("y"))]})
    await import_archive(ada, content, subscribe=subscribe)
    created = {
        row.path: row.subscribed for row in await load_mailboxes(ada) if row.path not in before
    }
    assert created == {"Deep": subscribe, "Deep/er": subscribe}
    assert all(row.subscribed for row in await load_mailboxes(ada) if row.path == "Sent")


async def load_mailboxes(client: GraphQLClient) -> Any:
    return await mailbox_loaders.load_visible_mailboxes_of_user(
        client_context(client), client.user.id, {"subscribed"}
    )


async def test_concurrent_imports_can_create_the_same_folder(ada: GraphQLClient) -> None:
    for prefix in ("a", "b"):
        files = {f"New/{prefix}{n}.eml": raw_message(f"{prefix}{n}") for n in range(40)}
        await start_import_runs(ada, eml_zip(files))
    await run_due_imports(ada.environment)
    assert sorted((await load_subjects_by_mailbox(ada))["New"]) == sorted(
        f"{letter}{n}" for letter in "ab" for n in range(40)
    )


@pytest.mark.usefixtures("small_transfer_chunks")
@pytest.mark.parametrize(
    "crash_case", list(itertools.product(["mbox", "zip", "account"], [1, 2, 3])), ids=str
)
async def test_run_of_a_dead_worker_continues_at_its_checkpoint(
    ada: GraphQLClient, admin_client: GraphQLClient, crash_case: tuple[str, int]
) -> None:
    kind, step_count = crash_case
    if kind == "account":
        for name in TEN_SUBJECTS:
            await store_raw_message(admin_client, raw_message(name))
        arguments = {"users": {"usernames": ["ada"]}}
        payload = await start_import(admin_client, {"user": {"username": "over"}}, **arguments)
        run_id = payload["connectorRuns"][0]["id"]
        expected = (await load_subjects_by_mailbox(admin_client))["INBOX"]
    else:
        files = {f"{name}.eml": raw_message(name) for name in TEN_SUBJECTS}
        (run_id,) = await start_import_runs(
            ada, ten_message_mbox() if kind == "mbox" else eml_zip(files)
        )
        expected = TEN_SUBJECTS
    await crash_worker(ada.environment, step_count)
    await run_due_imports(ada.environment)
    import_run = await load_run(ada, run_id)
    assert (import_run["state"], int(import_run["seenCount"])) == (
        "RUNNING",
        4 * step_count if step_count < 3 else len(expected),
    )
    await deregister_as_dead(ada.environment)
    await run_due_imports(ada.environment)
    import_run = await load_run(ada, run_id)
    assert (import_run["state"], message_counts(import_run)) == (
        "SUCCEEDED", (len(expected), len(expected), 0)
    )  # fmt: skip
    assert (await load_subjects_by_mailbox(ada))["INBOX"] == expected


@pytest.mark.usefixtures("small_transfer_chunks")
@pytest.mark.parametrize("commit_number", [1, 4, 6, 10])
async def test_messages_not_stored_at_a_crash_are_imported_once(
    ada: GraphQLClient, commit_number: int
) -> None:
    (run_id,) = await start_import_runs(ada, ten_message_mbox())
    # the blobs are stored, but no row refers to them yet
    await crash_worker(ada.environment, commit_number, "commit")
    await deregister_as_dead(ada.environment)
    await run_due_imports(ada.environment)
    assert message_counts(await load_run(ada, run_id)) == (10, 10, 0)
    assert (await load_subjects_by_mailbox(ada))["INBOX"] == TEN_SUBJECTS


@pytest.mark.usefixtures("small_transfer_chunks")
async def test_slow_worker_stores_nothing_after_a_takeover(
    ada: GraphQLClient,
) -> None:
    (run_id,) = await start_import_runs(ada, ten_message_mbox())
    takeovers: list[asyncio.Task[None]] = []

    async def take_over() -> None:
        await deregister_as_dead(ada.environment)
        await run_due_imports(ada.environment)

    def reach_fault_point(fault_point: str) -> None:
        if fault_point == "messages imported" and not takeovers:
            takeovers.append(asyncio.create_task(take_over()))

    await run_due_imports(replace(ada.environment, reach_fault_point=reach_fault_point))
    await asyncio.gather(*takeovers)
    import_run = await load_run(ada, run_id)
    assert (import_run["state"], message_counts(import_run)) == ("SUCCEEDED", (10, 10, 0))
    assert (await load_subjects_by_mailbox(ada))["INBOX"] == TEN_SUBJECTS


@pytest.mark.usefixtures("small_transfer_chunks")
@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "account"])
async def test_stopped_worker_stores_the_current_group_and_continues_later(
    ada: GraphQLClient, admin_client: GraphQLClient, is_archive: bool
) -> None:
    if is_archive:
        (run_id,) = await start_import_runs(ada, ten_message_mbox())
    else:
        for name in TEN_SUBJECTS:
            await store_raw_message(admin_client, raw_message(name))
        users = {"usernames": ["ada"]}
        payload = await start_import(admin_client, {"user": {"username": "over"}}, users=users)
        run_id = payload["connectorRuns"][0]["id"]
    stop = asyncio.Event()

    def stop_worker(fault_point: str) -> None:
        if fault_point == "messages imported":
            stop.set()

    environment = replace(ada.environment, reach_fault_point=stop_worker)
    await create_worker_task(connector_worker.run_worker(environment), stop)
    import_run = await load_run(ada, run_id)
    assert (import_run["state"], message_counts(import_run)) == ("RUNNING", (4, 4, 0))
    leases_of_connectors = await select_rows(environment, "SELECT lease, holder FROM connectors")
    assert leases_of_connectors == [(None, None)]
    await run_due_imports(ada.environment)
    import_run = await load_run(ada, run_id)
    assert (import_run["state"], message_counts(import_run)) == ("SUCCEEDED", (10, 10, 0))
    assert len((await load_subjects_by_mailbox(ada))["INBOX"]) == len(TEN_SUBJECTS)


@pytest.mark.usefixtures("small_transfer_chunks")
async def test_owner_gets_an_event_for_each_step(
    ada: GraphQLClient, environment: Environment
) -> None:
    position = await load_stream_position(environment, ada.user.id)
    await import_archive(ada, ten_message_mbox())
    kinds = [kind for kind, _ in await load_journal_entries(environment, ada.user.id, position)]
    assert kinds.count(EventType.CONNECTOR_CREATED) == 1
    # started, steps, finished
    assert kinds.count(EventType.CONNECTOR_UPDATED) == 1 + 3 + 1


@pytest.mark.usefixtures("small_transfer_chunks")
async def test_cancelled_run_keeps_imported_messages(
    ada: GraphQLClient, environment: Environment
) -> None:
    (run_id,) = await start_import_runs(ada, ten_message_mbox())
    await crash_worker(environment, 1)
    assert (await run_mutation_on_id(ada, "connectorRunCancel", run_id))["errors"] == []
    await deregister_as_dead(environment)
    await run_due_imports(environment)
    import_run = await load_run(ada, run_id)
    assert (import_run["state"], message_counts(import_run)) == ("CANCELLED", (4, 4, 0))
    assert (await load_subjects_by_mailbox(ada))["INBOX"] == TEN_SUBJECTS[:4]
    assert await select_rows(environment, "SELECT id FROM import_archives") == []


async def test_run_cancelled_before_its_start_imports_nothing(
    ada: GraphQLClient, environment: Environment
) -> None:
    (run_id,) = await start_import_runs(ada, ten_message_mbox())
    assert (await run_mutation_on_id(ada, "connectorRunCancel", run_id))["errors"] == []
    await run_due_imports(environment)
    assert (await load_run(ada, run_id))["state"] == "CANCELLED"
    assert await load_subjects_by_mailbox(ada) == {}
    assert await select_rows(environment, "SELECT id FROM import_archives") == []
    assert len(await select_rows(environment, "SELECT id FROM connector_runs")) == 1


async def test_full_account_imports_what_fits_and_fails(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    async def set_quota(quota: int) -> None:
        payload = await execute_mutation(
            root, "userUpdate", users={"usernames": ["ada"]}, set={"quota": quota}
        )
        assert payload["errors"] == []

    await set_quota(7000)
    import_run = await import_archive(ada, ten_message_mbox(1000))
    assert (import_run["state"], import_run["stage"]) == ("FAILED", "STORE")
    assert import_run["error"].startswith("The account is full")
    stored = int(import_run["importedCount"])
    assert (await load_subjects_by_mailbox(ada))["INBOX"] == TEN_SUBJECTS[:stored]
    assert 3 <= stored <= 6
    await set_quota(100_000)
    import_run = await import_archive(ada, ten_message_mbox(1000))
    assert (import_run["state"], message_counts(import_run)) == (
        "SUCCEEDED",
        (10, 10 - stored, stored),
    )
    assert (await load_subjects_by_mailbox(ada))["INBOX"] == TEN_SUBJECTS
    assert await select_rows(environment, "SELECT id FROM import_archives") == []


async def test_truncated_archive_fails_with_an_error(ada: GraphQLClient) -> None:
    archive = eml_zip({f"{name}.eml": raw_message(name) for name in TEN_SUBJECTS})
    import_run = await import_archive(ada, archive[: len(archive) // 2])
    assert (import_run["state"], import_run["stage"]) == ("FAILED", "FETCH")
    assert import_run["error"]


async def test_finished_run_is_deleted_after_30_days(
    ada: GraphQLClient, clock: ManualClock, environment: Environment
) -> None:
    run_id = (await import_archive(ada, ten_message_mbox()))["id"]
    statement = select(
        *select_columns(Connector, {"secret", "import_options", "next_run_at", "run_id"})
    )
    (connector_row,) = await environment.database.read(statement)
    assert set(connector_row) == {"", None}
    (waiting_id,) = await start_import_runs(ada, ten_message_mbox())
    clock.tick(days=29)
    await housekeeping.run_housekeeping_round(environment)
    assert await load_run(ada, run_id)
    clock.tick(days=2)
    assert (await housekeeping.run_housekeeping_round(environment)).imports == 1
    assert await load_run(ada, run_id) is None
    assert (await load_run(ada, waiting_id))["state"] == "QUEUED"
