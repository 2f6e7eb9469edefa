"""Test messageImport: storing a complete message in a mailbox."""

import base64
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from graph.types import global_ids
from models.errors import LimitReached
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages import message_import
from tests.conftest import GraphQLClient, ManualClock, client_context, raw_message
from tests.support.case_loop import each_case
from tests.support.operations.bulk_operations import list_message_ids, run_message_mutation
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_counters")


async def test_uploaded_message_is_stored_byte_for_byte(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    raw = raw_message("Up", body="Grüße")
    clock.tick(days=1)
    for encoded in (
        raw.decode(),
        raw.decode().replace("\r\n", "\n"),
        base64.b64encode(raw).decode(),
    ):
        answer = await run_message_mutation(
            ada_with_mail, "messageImport", mailbox={"path": "Brief"}, raw=encoded, flagged=True,
            receivedAt="2001-01-01T00:00:00Z", metadata={"a": 1},
        )  # fmt: skip
        (message,) = answer["messages"]
        assert (answer["errors"], message["rawSource"]) == ([], raw.decode())
        assert message["imap"]["flags"] == ["\\Seen", "\\Flagged"]
        assert message["size"] == len(raw)
        assert message["receivedAt"] == "2001-01-01T00:00:00Z"
        assert message["savedAt"] == "2030-01-02T00:00:03Z"
        assert message["expiresAt"] == "2030-01-03T00:00:03Z"
        assert message["metadata"] == {"a": 1}
    ((changed_at,),) = await select_rows(
        ada_with_mail.environment, "SELECT max(at) FROM changes WHERE type = 'MESSAGE_ADDED'"
    )
    assert str(changed_at).startswith("2030-01-02")


async def test_raw_upload_is_stored_as_message(ada_with_mail: GraphQLClient) -> None:
    raw = raw_message("Up", body="x" * 300_000)
    response = await ada_with_mail.http.post(
        "/rest/uploads", content=raw, headers=ada_with_mail.headers
    )
    arguments = {"mailbox": {"path": "INBOX"}, "rawUpload": response.json()["id"], "seen": False}
    answer = await run_message_mutation(ada_with_mail, "messageImport", **arguments)
    assert (answer["errors"], answer["messages"][0]["size"]) == ([], len(raw))
    assert (await ada_with_mail.load_mailbox()).unseen_count == 4


async def test_invalid_message_upload_is_refused(ada_with_mail: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str, list[str] | None]] = [
        ({}, "VALIDATION", ["raw"]),
        ({"raw": "a: b", "rawUpload": "x"}, "VALIDATION", ["rawUpload"]),
        ({"rawUpload": global_ids.encode("Upload", 7)}, "NOT_FOUND", None),
        ({"raw": "no message"}, "VALIDATION", ["raw"]),
        ({"raw": " \n"}, "VALIDATION", ["raw"]),
        ({"raw": "a: b", "mailbox": {"path": "Nowhere"}}, "NOT_FOUND", ["mailbox"]),
        ({"raw": "a: b", "metadata": []}, "VALIDATION", ["metadata"]),
    ]
    for case in each_case(cases):
        with case as (arguments, code, path):
            answer = await run_message_mutation(
                ada_with_mail, "messageImport", **{"mailbox": {"path": "INBOX"}, **arguments}
            )
            (error,) = answer["errors"]
            assert error["code"] == code
            assert path is None or error["path"] == path
            assert len(await list_message_ids(ada_with_mail)) == 3


async def test_message_over_size_limit_or_quota_is_refused(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    raw = raw_message("Up").decode()
    limited_environment = replace(
        environment, options=replace(environment.options, message_max_size=len(raw) - 1)
    )
    ctx = client_context(replace(ada_with_mail, environment=limited_environment))
    with pytest.raises(LimitReached) as raised:
        await message_import.store_imported_message_and_load_if_readable(
            ctx, message_import.NewMessage(MailboxSelector(path="INBOX"), raw)
        )
    assert (raised.value.limit, raised.value.used) == (len(raw) - 1, len(raw))
    ((used,),) = await select_rows(environment, "SELECT used FROM users")
    async with environment.write_session() as session:
        await session.exec(update(User).values(quota=used + len(raw) - 1))
    answer = await run_message_mutation(
        ada_with_mail, "messageImport", mailbox={"path": "INBOX"}, raw=raw
    )
    assert [(e["code"], e["used"]) for e in answer["errors"]] == [("QUOTA_EXCEEDED", used)]
    async with environment.write_session() as session:
        await session.exec(update(User).values(quota=used + len(raw)))
    answer = await run_message_mutation(
        ada_with_mail, "messageImport", mailbox={"path": "INBOX"}, raw=raw
    )
    assert answer["errors"] == []
    async with environment.write_session() as session:
        await session.exec(update(User).values(quota=None))
