"""Filters of mail imports select the same messages from archives, accounts and remote servers."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from models.connectors import Connector
from models.store.columns import select_columns
from tests.conftest import Client, make_client, raw_message
from tests.support.accounts.account_exports import codes
from tests.support.accounts.import_runs import (
    begin,
    begun,
    counted,
    crash,
    ended,
    held,
    maildir_tar,
    upon,
    work,
)
from tests.support.accounts.user_operations import run
from tests.support.operations.connector_operations import far, server
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount
from tests.support.stores.counter_check import rows
from tests.support.stores.other_processes import taken_for_dead

pytestmark = pytest.mark.usefixtures("examined")

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
    ({"to": "dora"}, {"Re: Plain"}),
    ({"toOnly": "dora"}, set()),
    ({"cc": "DORA@example.org"}, {"Re: Plain"}),
    ({"bcc": "eve"}, {"Re: Plain"}),
    ({"recipient": "eve@"}, {"Re: Plain"}),
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
    ({"mailboxMasks": ["L%"]}, {"List", "Long", "Old"}),
    ({"or": [{"subject": "old"}, {"and": [{"seen": True}, {"not": {"answered": True}}]}]},
     {"Old", "Plain"}),
]  # fmt: skip


async def test_filters_select_the_same_from_archives_and_accounts(
    ada: Client, bob: Client, root: Client
) -> None:
    content = maildir_tar(MAILDIR_MESSAGES)
    await begun(ada, content)
    await work(ada.world)
    assert {
        subject for subjects in (await held(ada)).values() for subject in subjects
    } == ALL_SUBJECTS
    cases_by_run_id: dict[str, tuple[dict[str, Any] | None, set[str]]] = {}
    for number, (condition, expected) in enumerate(FILTER_CASES):
        source = {"user": {"username": "ada"}}
        for kind, client in (("archive", bob), ("account", root)):
            arguments = {"filter": condition, "parentMailbox": {"path": f"{kind}{number}"}}
            if kind == "archive":
                (run_id,) = await begun(client, content, **arguments)
            else:
                payload = await begin(client, source, users={"usernames": ["bob"]}, **arguments)
                assert payload["errors"] == [], condition
                run_id = payload["run"]["id"]
            cases_by_run_id[run_id] = condition, expected
        await work(ada.world)
    imported_subjects: dict[str, set[str]] = {}
    for path, subjects in (await held(bob)).items():
        imported_subjects.setdefault(path.partition("/")[0], set()).update(subjects)
    for number, (condition, expected) in enumerate(FILTER_CASES):
        for kind in ("archive", "account"):
            assert imported_subjects.get(f"{kind}{number}", set()) == expected, (kind, condition)
    for run_id, (condition, expected) in cases_by_run_id.items():
        import_run = await ended(bob, run_id)
        assert import_run["state"] == "SUCCEEDED", (condition, import_run["error"])
        assert int(import_run["imported"]) == len(expected), condition


__all__ = ["far", "server"]


@pytest.fixture
def allow_private_hosts(ada: Client) -> None:
    """Let connectors connect to private addresses."""
    options = replace(ada.world.options, connectors_private=True)
    object.__setattr__(ada.world, "options", options)


def remote_source(far: DovecotAccount, username: str, **extra: Any) -> dict[str, Any]:
    protocol = extra.get("protocol", "IMAP")
    return {"remote": {
        "protocol": protocol, "host": "127.0.0.1", "port": far.ports[protocol.lower()],
        "security": "PLAIN", "username": username, "password": PASSWORD, **extra,
    }}  # fmt: skip


@pytest.mark.usefixtures("allow_private_hosts")
@pytest.mark.parametrize("protocol", ["IMAP", "POP3"])
async def test_remote_account_is_imported_once(
    ada: Client, bob: Client, far: DovecotAccount, protocol: str
) -> None:
    username = f"{protocol.lower()}{ada.user.id}"
    for subject in ("Good", "Better", "Unwanted"):
        far.for_user(username).save_message(raw_message(subject))
    far.for_user(username).save_message(raw_message("Best good"), "Deep/er")
    payload = await begin(
        ada,
        remote_source(far, username, protocol=protocol),
        filter={"or": [{"subject": "good"}, {"subject": "better"}]},
        parentMailbox={"path": "Far"},
        subscribe=True,
    )
    assert payload["errors"] == []
    assert PASSWORD not in str(payload)
    run_id = payload["run"]["id"]
    await work(ada.world)
    import_run = await ended(ada, run_id)
    assert (import_run["state"], import_run["error"]) == ("SUCCEEDED", None), import_run["log"]
    expected = {"Far/INBOX": ["Good", "Better"]}
    if protocol == "IMAP":
        expected["Far/Deep/er"] = ["Best good"]
    assert await held(ada) == expected
    assert await held(bob) == {}
    (connector_row,) = await ada.world.database.read(select(*select_columns(Connector)))
    assert (connector_row.secret, connector_row.bringing, connector_row.next_run_at) == (
        "",
        None,
        None,
    )
    assert await rows(ada.world, "SELECT id FROM connector_folders") == []
    subscribed = await rows(ada.world, "SELECT subscribed FROM mailboxes WHERE path LIKE 'Far/%'")
    assert {bool(value) for (value,) in subscribed} == {True}
    assert await ended(bob, run_id) is None
    assert codes(await upon(bob, "connectorCancel", run_id)) == [("NOT_FOUND", ["ids"])]


@pytest.mark.usefixtures("allow_private_hosts")
async def test_filtered_remote_messages_are_not_fetched_again(
    ada: Client, far: DovecotAccount
) -> None:
    remote_account = far.for_user(f"ledger{ada.user.id}")
    for subject, folder in (("In", "INBOX"), ("Out", "INBOX"), ("In, too", "Later")):
        remote_account.save_message(raw_message(subject), folder)
    parent = {"specialUse": "INBOX"}
    payload = await begin(
        ada,
        remote_source(far, f"ledger{ada.user.id}"),
        filter={"subject": "In"},
        parentMailbox=parent,
    )
    run_id = payload["run"]["id"]
    await crash(ada.world, 2, "commit")  # in the second folder
    statement_text = "SELECT message_id IS NULL FROM connector_messages"
    assert sorted(bool(is_skipped) for (is_skipped,) in await rows(ada.world, statement_text)) == [
        False,
        True,
    ]
    await taken_for_dead(ada.world)
    await work(ada.world)
    assert counted(await ended(ada, run_id)) == (3, 2, 0)
    assert await held(ada) == {"INBOX/INBOX": ["In"], "INBOX/Later": ["In, too"]}


@pytest.mark.usefixtures("allow_private_hosts")
async def test_full_account_stores_what_fits_from_a_remote_account(
    ada: Client, root: Client, far: DovecotAccount
) -> None:
    names = [f"{number}" for number in range(8)]
    for name in names:
        far.for_user(f"full{ada.user.id}").save_message(raw_message(name, body="y" * 1000))
    for quota, state in ((6000, "FAILED"), (100_000, "SUCCEEDED")):
        payload = await run(root, "userUpdate", users={"usernames": ["ada"]}, set={"quota": quota})
        assert payload["errors"] == []
        payload = await begin(ada, remote_source(far, f"full{ada.user.id}"))
        await work(ada.world)
        import_run = await ended(ada, payload["run"]["id"])
        stored = (await held(ada))["INBOX"]
        assert (import_run["state"], stored) == (state, names[: len(stored)]), import_run["error"]
        if state == "FAILED":
            assert 2 <= len(stored) == int(import_run["imported"]) < len(names)
    assert stored == names


@pytest.mark.usefixtures("allow_private_hosts")
async def test_progress_is_stored_between_steps(
    ada: Client, bob: Client, far: DovecotAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.connectors.worker.PROGRESS_SECONDS", 0.0005)
    names = [f"{number}" for number in range(40)]
    for name in names:
        far.for_user(f"beat{ada.user.id}").save_message(raw_message(name))
    payload = await begin(ada, remote_source(far, f"beat{ada.user.id}"))
    (other_run_id,) = await begun(
        bob, maildir_tar({"": [("S", raw_message(name)) for name in names]})
    )
    await work(ada.world)
    for client, run_id in ((ada, payload["run"]["id"]), (bob, other_run_id)):
        import_run = await ended(client, run_id)
        assert (import_run["state"], counted(import_run)) == ("SUCCEEDED", (40, 40, 0)), import_run[
            "error"
        ]
        assert sorted((await held(client))["INBOX"]) == sorted(names)


@pytest.mark.usefixtures("allow_private_hosts")
async def test_remote_import_needs_the_permission_and_valid_input(
    ada: Client, far: DovecotAccount
) -> None:
    client_without_permission = await make_client(ada.world, ada.http, "bare", permissions=[])
    payload = await begin(client_without_permission, remote_source(far, "x"))
    assert codes(payload)[0][0] == "FORBIDDEN"
    for fields, path in (
        ({"host": "a b"}, ["host"]),
        ({"password": ""}, ["password"]),
        ({"folderRewrites": [{"pattern": "(", "replacement": ""}]}, ["folderRewrites", "pattern"]),
    ):
        payload = await begin(ada, remote_source(far, "x", **fields))
        assert codes(payload) == [("VALIDATION", ["source", "remote", *path])]
    assert await rows(ada.world, "SELECT id FROM connectors") == []
    payload = await begin(ada, remote_source(far, "x", password="wrong"))  # noqa: S106 - that is the point
    await work(ada.world)
    import_run = await ended(ada, payload["run"]["id"])
    assert (import_run["state"], import_run["stage"]) == ("FAILED", "LOGIN")
    assert await rows(ada.world, "SELECT secret FROM connectors") == [("",)]
