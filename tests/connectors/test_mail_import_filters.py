"""Filters of mail imports select the same messages from archives, accounts and remote servers."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from models.connectors import Connector
from models.store.columns import select_columns
from tests.conftest import GraphQLClient, make_client, raw_message
from tests.support.accounts.import_runs import (
    crash_worker,
    load_run,
    load_subjects_by_mailbox,
    maildir_tar,
    message_counts,
    run_due_imports,
    run_mutation_on_id,
    start_import,
    start_import_runs,
)
from tests.support.accounts.user_exports import error_codes_and_paths
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.connector_operations import (
    dovecot_account,
    shared_dovecot,
    with_server,
)
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import deregister_as_dead

pytestmark = pytest.mark.usefixtures("verify_consistency")

MULTIPART_BODY = (
    'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
    "--b\r\nContent-Type: text/plain\r\n\r\nSee the file.\r\n"
    '--b\r\nContent-Type: application/pdf; name="Übersicht.pdf"\r\n'
    'Content-Disposition: attachment; filename="Report.PDF"\r\n'
    "Content-Transfer-Encoding: base64\r\n\r\nJVBERg==\r\n--b--\r\n"
)


def message_with_attachment() -> bytes:
    header, _, _ = raw_message("Files").partition(b"\r\n\r\n")
    return header + b"\r\nMIME-Version: 1.0\r\n" + MULTIPART_BODY.encode()


MAILDIR_MESSAGES = {
    "": [
        ("S", raw_message("Plain")),
        ("F", raw_message("Größe", body="Ein Ärgernis.", From="Änne <aenne@example.net>")),
        ("RS", raw_message("Re: Plain", Cc="Dora <dora@example.org>", Bcc="eve@example.org")),
        ("", message_with_attachment()),
    ],
    ".Lists": [
        ("P", raw_message("List", List_ID="Talk <talk.example.net>", Date="")),
        ("T", raw_message("Long", body="word " * 3000)),
        ("D", raw_message("Old", Date="Tue, 01 Jan 2019 10:00:00 +0000", X_Odd="Some Thing")),
    ],
}
ALL_SUBJECTS = {"Plain", "Größe", "Re: Plain", "Files", "List", "Long", "Old"}
FILTER_CASES: list[tuple[dict[str, Any] | None, set[str]]] = [
    (None, ALL_SUBJECTS),
    ({"subject": "plain"}, {"Plain", "Re: Plain"}),
    ({"subject": "GRÖSSE"}, {"Größe"}),
    ({"subject": "größe"}, {"Größe"}),
    ({"from": "äNNE"}, {"Größe"}),
    ({"from": "AENNE@"}, {"Größe"}),
    ({"toOrCc": "dora"}, {"Re: Plain"}),
    ({"to": "dora"}, set()),
    ({"cc": "DORA@example.org"}, {"Re: Plain"}),
    ({"bcc": "eve"}, {"Re: Plain"}),
    ({"anyRecipient": "eve@"}, {"Re: Plain"}),
    ({"listId": "talk.EXAMPLE"}, {"List"}),
    ({"header": {"name": "x-odd"}}, {"Old"}),
    ({"header": {"name": "X-Odd", "contains": "some t"}}, {"Old"}),
    ({"header": {"name": "X-Odd", "contains": "other"}}, set()),
    ({"body": "ärger"}, {"Größe"}),
    ({"text": "some thing"}, {"Old"}),
    ({"query": "argernis"}, {"Größe"}),
    ({"query": '"word word" -plain'}, {"Long"}),
    ({"seen": True}, {"Plain", "Re: Plain"}),
    ({"seen": False, "flagged": True}, {"Größe"}),
    ({"answered": True}, {"Re: Plain"}),
    ({"draft": True}, {"Old"}),
    ({"deleted": True}, {"Long"}),
    ({"forwarded": True}, {"List"}),
    ({"forwarded": False}, ALL_SUBJECTS - {"List"}),
    ({"keyword": "$forwarded"}, {"List"}),
    ({"keyword": "\\Seen"}, set()),
    ({"sentBefore": {"at": "2020-01-01T00:00:00Z"}}, {"Old"}),
    ({"sentSince": {"at": "2020-01-01T00:00:00Z"}}, ALL_SUBJECTS - {"Old", "List"}),
    ({"not": {"sentSince": {"at": "2020-01-01T00:00:00Z"}}}, {"Old", "List"}),
    ({"receivedSince": {"at": "2023-11-14T22:13:25Z"}}, {"List", "Long", "Old"}),
    ({"receivedBefore": {"at": "2023-11-14T22:13:22Z"}}, {"Plain"}),
    ({"larger": "10000"}, {"Long"}),
    ({"smaller": "10000", "seen": True}, {"Plain", "Re: Plain"}),
    ({"hasAttachment": True}, {"Files"}),
    ({"hasAttachment": False}, ALL_SUBJECTS - {"Files"}),
    ({"attachment": {"filename": "report"}}, {"Files"}),
    ({"attachment": {"contentType": "PDF", "filename": "x"}}, set()),
    ({"mailbox": {"path": "Lists"}}, {"List", "Long", "Old"}),
    ({"mailboxes": [{"path": "INBOX"}, {"path": "None"}]}, ALL_SUBJECTS - {"List", "Long", "Old"}),
    ({"mailboxPatterns": ["L%"]}, {"List", "Long", "Old"}),
    ({"or": [{"subject": "old"}, {"and": [{"seen": True}, {"not": {"answered": True}}]}]},
     {"Old", "Plain"}),
]  # fmt: skip


async def test_filters_select_the_same_from_archives_and_accounts(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    content = maildir_tar(MAILDIR_MESSAGES)
    await start_import_runs(ada, content)
    await run_due_imports(ada.environment)
    assert {
        subject
        for subjects in (await load_subjects_by_mailbox(ada)).values()
        for subject in subjects
    } == ALL_SUBJECTS
    cases_by_run_id: dict[str, tuple[dict[str, Any] | None, set[str]]] = {}
    for number, (condition, expected) in enumerate(FILTER_CASES):
        source = {"user": {"username": "ada"}}
        for kind, client in (("archive", bob), ("account", root)):
            arguments = {"filter": condition, "parentMailbox": {"path": f"{kind}{number}"}}
            if kind == "archive":
                (run_id,) = await start_import_runs(client, content, **arguments)
            else:
                payload = await start_import(
                    client, source, users={"usernames": ["bob"]}, **arguments
                )
                assert payload["errors"] == [], condition
                run_id = payload["connectorRuns"][0]["id"]
            cases_by_run_id[run_id] = condition, expected
        await run_due_imports(ada.environment)
    imported_subjects: dict[str, set[str]] = {}
    for path, subjects in (await load_subjects_by_mailbox(bob)).items():
        imported_subjects.setdefault(path.partition("/")[0], set()).update(subjects)
    for number, (condition, expected) in enumerate(FILTER_CASES):
        for kind in ("archive", "account"):
            assert imported_subjects.get(f"{kind}{number}", set()) == expected, (kind, condition)
    for run_id, (condition, expected) in cases_by_run_id.items():
        import_run = await load_run(bob, run_id)
        assert import_run["state"] == "SUCCEEDED", (condition, import_run["error"])
        assert int(import_run["importedCount"]) == len(expected), condition


__all__ = ["dovecot_account", "shared_dovecot"]


@pytest.fixture
def allow_private_hosts(ada: GraphQLClient) -> None:
    """Let connectors connect to private addresses."""
    options = replace(ada.environment.options, connectors_allow_private_networks=True)
    object.__setattr__(ada.environment, "options", options)


def remote_source(dovecot_account: DovecotAccount, username: str, **extra: Any) -> dict[str, Any]:
    protocol = extra.get("protocol", "IMAP")
    return {"remote": with_server({
        "protocol": protocol, "host": "127.0.0.1", "port": dovecot_account.ports[protocol.lower()],
        "security": "NONE", "username": username, "password": PASSWORD, **extra,
    })}  # fmt: skip


@pytest.mark.usefixtures("allow_private_hosts")
@pytest.mark.parametrize("protocol", ["IMAP", "POP3"])
async def test_remote_account_is_imported_once(
    ada: GraphQLClient, bob: GraphQLClient, dovecot_account: DovecotAccount, protocol: str
) -> None:
    username = f"{protocol.lower()}{ada.user.id}"
    for subject in ("Good", "Better", "Unwanted"):
        dovecot_account.for_user(username).save_message(raw_message(subject))
    dovecot_account.for_user(username).save_message(raw_message("Best good"), "Deep/er")
    payload = await start_import(
        ada,
        remote_source(dovecot_account, username, protocol=protocol),
        filter={"or": [{"subject": "good"}, {"subject": "better"}]},
        parentMailbox={"path": "Far"},
        subscribe=True,
    )
    assert payload["errors"] == []
    assert PASSWORD not in str(payload)
    run_id = payload["connectorRuns"][0]["id"]
    await run_due_imports(ada.environment)
    import_run = await load_run(ada, run_id)
    assert (import_run["state"], import_run["error"]) == ("SUCCEEDED", None), import_run["log"]
    expected = {"Far/INBOX": ["Good", "Better"]}
    if protocol == "IMAP":
        expected["Far/Deep/er"] = ["Best good"]
    assert await load_subjects_by_mailbox(ada) == expected
    assert await load_subjects_by_mailbox(bob) == {}
    (connector_row,) = await ada.environment.database.read(select(*select_columns(Connector)))
    assert (connector_row.secret, connector_row.import_options, connector_row.next_run_at) == (
        "",
        None,
        None,
    )
    assert await select_rows(ada.environment, "SELECT id FROM remote_mailboxes") == []
    subscribed = await select_rows(
        ada.environment, "SELECT subscribed FROM mailboxes WHERE path LIKE 'Far/%'"
    )
    assert {bool(value) for (value,) in subscribed} == {True}
    assert await load_run(bob, run_id) is None
    assert error_codes_and_paths(await run_mutation_on_id(bob, "connectorRunCancel", run_id)) == [
        ("NOT_FOUND", ["connectorRuns", "0"])
    ]


@pytest.mark.usefixtures("allow_private_hosts")
async def test_filtered_remote_messages_are_not_fetched_again(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    remote_account = dovecot_account.for_user(f"ledger{ada.user.id}")
    for subject, folder in (("In", "INBOX"), ("Out", "INBOX"), ("In, too", "Later")):
        remote_account.save_message(raw_message(subject), folder)
    parent = {"specialUse": "INBOX"}
    payload = await start_import(
        ada,
        remote_source(dovecot_account, f"ledger{ada.user.id}"),
        filter={"subject": "In"},
        parentMailbox=parent,
    )
    run_id = payload["connectorRuns"][0]["id"]
    await crash_worker(ada.environment, 2, "commit")  # in the second folder
    statement_text = "SELECT message_id IS NULL FROM fetched_messages"
    assert sorted(
        bool(is_skipped) for (is_skipped,) in await select_rows(ada.environment, statement_text)
    ) == [
        False,
        True,
    ]
    await deregister_as_dead(ada.environment)
    await run_due_imports(ada.environment)
    assert message_counts(await load_run(ada, run_id)) == (3, 2, 0)
    assert await load_subjects_by_mailbox(ada) == {
        "INBOX/INBOX": ["In"],
        "INBOX/Later": ["In, too"],
    }


@pytest.mark.usefixtures("allow_private_hosts")
async def test_full_account_stores_what_fits_from_a_remote_account(
    ada: GraphQLClient, root: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    names = [f"{number}" for number in range(8)]
    for name in names:
        dovecot_account.for_user(f"full{ada.user.id}").save_message(
            raw_message(name, body="y" * 1000)
        )
    for quota, state in ((6000, "FAILED"), (100_000, "SUCCEEDED")):
        payload = await execute_mutation(
            root, "userUpdate", users={"usernames": ["ada"]}, set={"quota": quota}
        )
        assert payload["errors"] == []
        payload = await start_import(ada, remote_source(dovecot_account, f"full{ada.user.id}"))
        await run_due_imports(ada.environment)
        import_run = await load_run(ada, payload["connectorRuns"][0]["id"])
        stored = (await load_subjects_by_mailbox(ada))["INBOX"]
        assert (import_run["state"], stored) == (state, names[: len(stored)]), import_run["error"]
        if state == "FAILED":
            assert 2 <= len(stored) == int(import_run["importedCount"]) < len(names)
    assert stored == names


@pytest.mark.usefixtures("allow_private_hosts")
async def test_progress_is_stored_between_steps(
    ada: GraphQLClient,
    bob: GraphQLClient,
    dovecot_account: DovecotAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resolvers.connectors.worker.PROGRESS_SECONDS", 0.0005)
    names = [f"{number}" for number in range(40)]
    for name in names:
        dovecot_account.for_user(f"beat{ada.user.id}").save_message(raw_message(name))
    payload = await start_import(ada, remote_source(dovecot_account, f"beat{ada.user.id}"))
    (other_run_id,) = await start_import_runs(
        bob, maildir_tar({"": [("S", raw_message(name)) for name in names]})
    )
    await run_due_imports(ada.environment)
    for client, run_id in ((ada, payload["connectorRuns"][0]["id"]), (bob, other_run_id)):
        import_run = await load_run(client, run_id)
        assert (import_run["state"], message_counts(import_run)) == ("SUCCEEDED", (40, 40, 0)), (
            import_run["error"]
        )
        assert sorted((await load_subjects_by_mailbox(client))["INBOX"]) == sorted(names)


@pytest.mark.usefixtures("allow_private_hosts")
async def test_remote_import_needs_the_permission_and_valid_input(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    client_without_permission = await make_client(ada.environment, ada.http, "bare", permissions=[])
    payload = await start_import(client_without_permission, remote_source(dovecot_account, "x"))
    assert error_codes_and_paths(payload)[0][0] == "FORBIDDEN"
    for fields, path in (
        ({"host": "a b"}, ["server", "host"]),
        ({"password": ""}, ["server", "password"]),
        (
            {"folderRewrites": [{"pattern": "(", "replacement": ""}]},
            ["folderRewrites", "0", "pattern"],
        ),
    ):
        payload = await start_import(ada, remote_source(dovecot_account, "x", **fields))
        assert error_codes_and_paths(payload) == [("VALIDATION", ["source", "remote", *path])]
    assert await select_rows(ada.environment, "SELECT id FROM connectors") == []
    payload = await start_import(ada, remote_source(dovecot_account, "x", password="wrong"))  # noqa: S106 - that is the point
    await run_due_imports(ada.environment)
    import_run = await load_run(ada, payload["connectorRuns"][0]["id"])
    assert (import_run["state"], import_run["stage"]) == ("FAILED", "LOGIN")
    assert await select_rows(ada.environment, "SELECT secret FROM connectors") == [("",)]
