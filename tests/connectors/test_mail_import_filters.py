"""Which messages an import brings: the same from an archive, an account here, and elsewhere."""

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

FILE = (
    'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
    "--b\r\nContent-Type: text/plain\r\n\r\nSee the file.\r\n"
    '--b\r\nContent-Type: application/pdf; name="Übersicht.pdf"\r\n'
    'Content-Disposition: attachment; filename="Report.PDF"\r\n'
    "Content-Transfer-Encoding: base64\r\n\r\nJVBERg==\r\n--b--\r\n"
)


def with_file() -> bytes:
    head, _, _ = raw_message("Files").partition(b"\r\n\r\n")
    return head + b"\r\nMIME-Version: 1.0\r\n" + FILE.encode()


SENT = {
    "": [
        ("S", raw_message("Plain")),
        ("F", raw_message("Größe", body="Ein Ärgernis.", From="Änne <aenne@example.net>")),
        ("RS", raw_message("Re: Plain", Cc="Dora <dora@example.org>", Bcc="eve@example.org")),
        ("", with_file()),
    ],
    ".Lists": [
        ("P", raw_message("List", List_ID="Talk <talk.example.net>", Date="")),
        ("T", raw_message("Long", body="word " * 3000)),
        ("D", raw_message("Old", Date="Tue, 01 Jan 2019 10:00:00 +0000", X_Odd="Some Thing")),
    ],
}
ALL = {"Plain", "Größe", "Re: Plain", "Files", "List", "Long", "Old"}
CASES: list[tuple[dict[str, Any] | None, set[str]]] = [
    (None, ALL),
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
    ({"forwarded": False}, ALL - {"List"}),
    ({"keyword": "$forwarded"}, {"List"}),
    ({"keyword": "\\Seen"}, set()),
    ({"sentBefore": {"at": "2020-01-01T00:00:00Z"}}, {"Old"}),
    ({"sentSince": {"at": "2020-01-01T00:00:00Z"}}, ALL - {"Old", "List"}),
    ({"not": {"sentSince": {"at": "2020-01-01T00:00:00Z"}}}, {"Old", "List"}),
    ({"receivedSince": {"at": "2023-11-14T22:13:25Z"}}, {"List", "Long", "Old"}),
    ({"receivedBefore": {"at": "2023-11-14T22:13:22Z"}}, {"Plain"}),
    ({"larger": "10000"}, {"Long"}),
    ({"smaller": "10000", "seen": True}, {"Plain", "Re: Plain"}),
    ({"hasAttachment": True}, {"Files"}),
    ({"hasAttachment": False}, ALL - {"Files"}),
    ({"attachment": {"filename": "report"}}, {"Files"}),
    ({"attachment": {"contentType": "PDF", "filename": "x"}}, set()),
    ({"mailbox": {"path": "Lists"}}, {"List", "Long", "Old"}),
    ({"mailboxes": [{"path": "INBOX"}, {"path": "None"}]}, ALL - {"List", "Long", "Old"}),
    ({"mailboxMasks": ["L%"]}, {"List", "Long", "Old"}),
    ({"or": [{"subject": "old"}, {"and": [{"seen": True}, {"not": {"answered": True}}]}]},
     {"Old", "Plain"}),
]  # fmt: skip


async def test_filters_mean_the_same_of_archives_and_of_stored_mail(
    ada: Client, bob: Client, root: Client
) -> None:
    content = maildir_tar(SENT)
    await begun(ada, content)
    await work(ada.world)
    assert {each for box in (await held(ada)).values() for each in box} == ALL
    keys: dict[str, tuple[dict[str, Any] | None, set[str]]] = {}
    for nth, (asked, expected) in enumerate(CASES):
        source = {"user": {"username": "ada"}}
        for kind, client in (("archive", bob), ("account", root)):
            given = {"filter": asked, "parentMailbox": {"path": f"{kind}{nth}"}}
            if kind == "archive":
                (key,) = await begun(client, content, **given)
            else:
                done = await begin(client, source, users={"usernames": ["bob"]}, **given)
                assert done["errors"] == [], asked
                key = done["run"]["id"]
            keys[key] = asked, expected
        await work(ada.world)
    there: dict[str, set[str]] = {}
    for path, subjects in (await held(bob)).items():
        there.setdefault(path.partition("/")[0], set()).update(subjects)
    for nth, (asked, expected) in enumerate(CASES):
        for kind in ("archive", "account"):
            assert there.get(f"{kind}{nth}", set()) == expected, (kind, asked)
    for key, (asked, expected) in keys.items():
        one = await ended(bob, key)
        assert one["state"] == "SUCCEEDED", (asked, one["error"])
        assert int(one["imported"]) == len(expected), asked


# ---------------------------------------------------------------- elsewhere

__all__ = ["far", "server"]


@pytest.fixture
def private(ada: Client) -> None:
    """Connectors may go to our own machine."""
    options = replace(ada.world.options, connectors_private=True)
    object.__setattr__(ada.world, "options", options)


def remote(far: DovecotAccount, username: str, **more: Any) -> dict[str, Any]:
    protocol = more.get("protocol", "IMAP")
    return {"remote": {
        "protocol": protocol, "host": "127.0.0.1", "port": far.ports[protocol.lower()],
        "security": "PLAIN", "username": username, "password": PASSWORD, **more,
    }}  # fmt: skip


@pytest.mark.usefixtures("private")
@pytest.mark.parametrize("protocol", ["IMAP", "POP3"])
async def test_an_account_elsewhere_is_imported_once(
    ada: Client, bob: Client, far: DovecotAccount, protocol: str
) -> None:
    name = f"{protocol.lower()}{ada.user.id}"
    for subject in ("Good", "Better", "Unwanted"):
        far.for_user(name).save_message(raw_message(subject))
    far.for_user(name).save_message(raw_message("Best good"), "Deep/er")
    done = await begin(
        ada,
        remote(far, name, protocol=protocol),
        filter={"or": [{"subject": "good"}, {"subject": "better"}]},
        parentMailbox={"path": "Far"},
        subscribe=True,
    )
    assert done["errors"] == []
    assert PASSWORD not in str(done)
    key = done["run"]["id"]
    await work(ada.world)
    one = await ended(ada, key)
    assert (one["state"], one["error"]) == ("SUCCEEDED", None), one["log"]
    expected = {"Far/INBOX": ["Good", "Better"]}
    if protocol == "IMAP":
        expected["Far/Deep/er"] = ["Best good"]
    assert await held(ada) == expected
    assert await held(bob) == {}
    (left,) = await ada.world.database.read(select(*select_columns(Connector)))
    assert (left.secret, left.bringing, left.next_run_at) == ("", None, None)
    assert await rows(ada.world, "SELECT id FROM connector_folders") == []
    subscribed = await rows(ada.world, "SELECT subscribed FROM mailboxes WHERE path LIKE 'Far/%'")
    assert {bool(value) for (value,) in subscribed} == {True}
    assert await ended(bob, key) is None
    assert codes(await upon(bob, "connectorCancel", key)) == [("NOT_FOUND", ["ids"])]


@pytest.mark.usefixtures("private")
async def test_what_a_filter_leaves_out_elsewhere_is_not_fetched_again(
    ada: Client, far: DovecotAccount
) -> None:
    ledger = far.for_user(f"ledger{ada.user.id}")
    for subject, folder in (("In", "INBOX"), ("Out", "INBOX"), ("In, too", "Later")):
        ledger.save_message(raw_message(subject), folder)
    parent = {"specialUse": "INBOX"}
    done = await begin(
        ada, remote(far, f"ledger{ada.user.id}"), filter={"subject": "In"}, parentMailbox=parent
    )
    key = done["run"]["id"]
    await crash(ada.world, 2, "commit")  # in the second folder
    noted = "SELECT message_id IS NULL FROM connector_messages"
    assert sorted(bool(left) for (left,) in await rows(ada.world, noted)) == [False, True]
    await taken_for_dead(ada.world)
    await work(ada.world)
    assert counted(await ended(ada, key)) == (3, 2, 0)
    assert await held(ada) == {"INBOX/INBOX": ["In"], "INBOX/Later": ["In, too"]}


@pytest.mark.usefixtures("private")
async def test_a_full_account_takes_what_fits_from_elsewhere(
    ada: Client, root: Client, far: DovecotAccount
) -> None:
    names = [f"{number}" for number in range(8)]
    for name in names:
        far.for_user(f"full{ada.user.id}").save_message(raw_message(name, body="y" * 1000))
    for quota, state in ((6000, "FAILED"), (100_000, "SUCCEEDED")):
        done = await run(root, "userUpdate", users={"usernames": ["ada"]}, set={"quota": quota})
        assert done["errors"] == []
        done = await begin(ada, remote(far, f"full{ada.user.id}"))
        await work(ada.world)
        one = await ended(ada, done["run"]["id"])
        stored = (await held(ada))["INBOX"]
        assert (one["state"], stored) == (state, names[: len(stored)]), one["error"]
        if state == "FAILED":
            assert 2 <= len(stored) == int(one["imported"]) < len(names)
    assert stored == names


@pytest.mark.usefixtures("private")
async def test_signs_of_life_come_between_units(
    ada: Client, bob: Client, far: DovecotAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.connectors.worker.PROGRESS_SECONDS", 0.0005)
    names = [f"{number}" for number in range(40)]
    for name in names:
        far.for_user(f"beat{ada.user.id}").save_message(raw_message(name))
    done = await begin(ada, remote(far, f"beat{ada.user.id}"))
    (other,) = await begun(bob, maildir_tar({"": [("S", raw_message(name)) for name in names]}))
    await work(ada.world)
    for client, key in ((ada, done["run"]["id"]), (bob, other)):
        one = await ended(client, key)
        assert (one["state"], counted(one)) == ("SUCCEEDED", (40, 40, 0)), one["error"]
        assert sorted((await held(client))["INBOX"]) == sorted(names)


@pytest.mark.usefixtures("private")
async def test_accounts_elsewhere_are_for_who_may_have_connectors(
    ada: Client, far: DovecotAccount
) -> None:
    bare = await make_client(ada.world, ada.http, "bare", permissions=[])
    done = await begin(bare, remote(far, "x"))
    assert codes(done)[0][0] == "FORBIDDEN"
    for more, path in (
        ({"host": "a b"}, ["host"]),
        ({"password": ""}, ["password"]),
        ({"folderRewrites": [{"pattern": "(", "replacement": ""}]}, ["folderRewrites", "pattern"]),
    ):
        done = await begin(ada, remote(far, "x", **more))
        assert codes(done) == [("VALIDATION", ["source", "remote", *path])]
    assert await rows(ada.world, "SELECT id FROM connectors") == []
    done = await begin(ada, remote(far, "x", password="wrong"))  # noqa: S106 - that is the point
    await work(ada.world)
    one = await ended(ada, done["run"]["id"])
    assert (one["state"], one["stage"]) == ("FAILED", "LOGIN")
    assert await rows(ada.world, "SELECT secret FROM connectors") == [("",)]
