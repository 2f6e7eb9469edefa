"""Mail imports of files with the state of other programs."""

import pytest

from tests.conftest import GraphQLClient
from tests.support.accounts.import_runs import (
    eml_zip,
    import_archive,
    load_subjects_by_mailbox,
    message_counts,
)
from tests.support.accounts.user_exports import load_account_state
from tests.support.accounts.user_operations import execute_mutation

pytestmark = pytest.mark.usefixtures("verify_consistency")

TAKEOUT = b"""From 1234567890123456789@xxx Mon Mar 02 09:30:00 +0000 2026
X-Gmail-Labels: =?UTF-8?Q?Gesendet,Sch=C3=B6ne_Dinge,Unread?=
 =?UTF-8?Q?,Starred?=
From: a@example.net
Subject: Labelled

x

From 1234567890123456790@xxx Mon Mar 02 09:31:00 +0000 2026
X-Gmail-Labels: Trash,"A, B"
From: a@example.net
Subject: In the bin

y

From 1234567890123456791@xxx Mon Mar 02 09:32:00 +0000 2026
X-Gmail-Labels: Inbox,Opened
From: a@example.net
Subject: Read already

z

From 1234567890123456792@xxx Mon Mar 02 09:33:00 +0000 2026
X-Gmail-Labels: Archived,Work/Old,Unread
From: a@example.net
Subject: Own label

z
"""


async def load_mailbox_and_flags_by_subject(
    client: GraphQLClient,
) -> dict[str, tuple[str, list[str]]]:
    messages = (await load_account_state(client))["mail"]
    return {
        raw.partition(b"Subject: ")[2].partition(b"\r\n")[0].decode(): (path, flags)
        for path, raw, flags, _ in messages
    }


async def test_takeout_labels_choose_mailbox_and_flags(ada: GraphQLClient) -> None:
    payload = await execute_mutation(
        ada, "mailboxRename", "mailboxes { path }", mailbox={"path": "Sent"}, newPath="Gone out"
    )
    assert payload["errors"] == []
    content = eml_zip({"Takeout/Mail/All mail Including Spam and Trash.mbox": TAKEOUT})
    import_run = await import_archive(ada, content)
    assert message_counts(import_run) == (4, 4, 0), import_run["log"]
    assert await load_mailbox_and_flags_by_subject(ada) == {
        "Labelled": ("Gone out", ["Schöne_Dinge", "\\Flagged"]),
        "In the bin": ("Trash", ["A,_B", "\\Seen"]),
        "Read already": ("INBOX", ["\\Seen"]),
        "Own label": ("Work/Old", []),
    }


async def test_takeout_labels_are_mailboxes_below_the_parent(ada: GraphQLClient) -> None:
    import_run = await import_archive(ada, TAKEOUT, parentMailbox={"path": "Gmail"})
    assert message_counts(import_run) == (4, 4, 0), import_run["log"]
    assert await load_subjects_by_mailbox(ada) == {
        "Gmail/Sent": ["Labelled"],
        "Gmail/Trash": ["In the bin"],
        "Gmail/INBOX": ["Read already"],
        "Gmail/Work/Old": ["Own label"],
    }


async def test_status_fields_of_an_mbox_become_flags(ada: GraphQLClient) -> None:
    content = (
        b"From a@example.net Mon Mar  2 09:30:00 2026\nStatus: RO\nX-Status: AF\n"
        b"X-Keywords: blue green Blue\nSubject: Old\n\nx\n\n"
        b"From a@example.net Mon Mar  2 09:32:00 2026\nX-Mozilla-Status: 0007\n"
        b"Subject: Mozilla\n\nz\n"
    )
    import_run = await import_archive(ada, content)
    assert message_counts(import_run) == (2, 2, 0), import_run["log"]
    assert await load_mailbox_and_flags_by_subject(ada) == {
        "Old": ("INBOX", ["\\Answered", "\\Flagged", "\\Seen", "blue", "green"]),
        "Mozilla": ("INBOX", ["\\Answered", "\\Flagged", "\\Seen"]),
    }
