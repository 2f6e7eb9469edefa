"""Test mail merge: one message per entry, all or none, with {{name}} placeholders."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.compose import text_templates
from models.errors import InvalidInput
from models.runtime.environment import CommittedOptions, Environment
from models.users.tables import User
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import load_queued_messages
from tests.support.operations.bulk_operations import undo_mutation

SEND_FIELDS = """submissions { id envelopeFrom recipients { recipient } }
  messages { subject text to { address } } undo { token } warnings { code }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def send_message(client: GraphQLClient, **fields: Any) -> Any:
    return await execute_mutation(client, "messageSend", SEND_FIELDS, **fields)


def error_codes_and_paths(answer: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in answer["errors"]]


def merge_entry(local_part: str, **values: Any) -> dict[str, Any]:
    return {"to": [{"address": f"{local_part}@example.net"}], "values": values}


async def test_merge_sends_one_message_per_entry(
    ada: GraphQLClient, environment: Environment
) -> None:
    answer = await send_message(
        ada,
        subject="Hello {{name}}",
        text="Dear {{ name }}, {{count}} {{things}}.",
        html="<p>Dear {{name}}, {{count}} {{things}}.</p>",
        template={"things": "ducks & geese"},
        mailMerge=[
            merge_entry("carol", name="Carol", count=2),
            merge_entry("dave", name="<Dave>", count=3),
        ],
    )
    assert answer["errors"] == []
    assert [item["recipients"] for item in answer["submissions"]] == [
        [{"recipient": "carol@example.net"}],
        [{"recipient": "dave@example.net"}],
    ]
    assert [item["subject"] for item in answer["messages"]] == ["Hello Carol", "Hello <Dave>"]
    assert "Dear <Dave>, 3 ducks & geese." in answer["messages"][1]["text"]
    first, second = await load_queued_messages(environment)
    assert b"dave" not in first.lower()
    assert b"carol" not in second.lower()
    assert b"Dear &lt;Dave&gt;, 3 ducks &amp; geese." in second
    ids = [raw.lower().split(b"message-id: ")[1].split(b"\r\n")[0] for raw in (first, second)]
    assert len(set(ids)) == 2


async def test_merge_with_invalid_entry_sends_nothing(
    ada: GraphQLClient, environment: Environment
) -> None:
    answer = await send_message(
        ada, subject="x", text="{{a}}", mailMerge=[merge_entry("carol", a=1), merge_entry("dave")]
    )
    assert error_codes_and_paths(answer) == [("VALIDATION", ["mailMerge", "1", "values"])]
    invalid_entries = [merge_entry("carol"), {"to": [{"address": "half@"}]}, {"to": []}]
    answer = await send_message(ada, subject="x", text="y", mailMerge=invalid_entries)
    assert error_codes_and_paths(answer) == [
        ("VALIDATION", ["mailMerge", "1", "to", "0"]),
        ("VALIDATION", ["mailMerge", "2", "to"]),
    ]
    assert await load_queued_messages(environment) == []


async def test_recipient_limit_counts_merge_recipients(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with environment.database.write_session() as session:
        user_update = update(User).where(col(User.id) == ada.user.id)
        await (await session.connection()).execute(user_update.values(recipients_per_day=3))
    entries = [merge_entry(name) for name in "abcd"]
    assert [
        code
        for code, _ in error_codes_and_paths(await send_message(ada, text="x", mailMerge=entries))
    ] == ["RATE_LIMITED"]
    assert await load_queued_messages(environment) == []
    assert (await send_message(ada, text="x", mailMerge=entries[:3]))["errors"] == []


async def test_undo_cancels_all_merged_messages(ada: GraphQLClient) -> None:
    answer = await send_message(
        ada, text="x", mailMerge=[merge_entry("a"), merge_entry("b")], undoWindow="PT30S"
    )
    undone = await undo_send(ada, answer)
    assert (undone["errors"], undone["restoredCount"]) == ([], 2)


async def undo_send(client: GraphQLClient, sent: Any) -> Any:
    return await undo_mutation(client, sent)


INVALID_MERGES: list[tuple[dict[str, Any], list[str]]] = [
    ({"mailMerge": []}, ["mailMerge"]),
    ({"mailMerge": [merge_entry("a")] * 101}, ["mailMerge"]),
    ({"mailMerge": [merge_entry("a")], "to": [{"address": "b@example.net"}]}, ["mailMerge"]),
    (
        {"mailMerge": [merge_entry("a")], "envelope": {"to": [{"address": "b@x.org"}]}},
        ["mailMerge"],
    ),
    ({"mailMerge": [merge_entry("a", x=[1])]}, ["mailMerge", "0", "values", "x"]),
    (
        {"mailMerge": [merge_entry("a", x="a\r\nBcc: b@c.d")], "subject": "{{x}}"},
        ["mailMerge", "0", "values"],
    ),
    ({"to": [{"address": "b@x.org"}], "subject": "{{y}}", "template": {}}, ["subject"]),
    ({"to": [{"address": "b@x.org"}], "template": {"a": {}}}, ["template", "a"]),
    ({"to": [{"address": "b@x.org"}], "template": {"a{": 1}}, ["template"]),
]


async def test_invalid_merge_is_refused(ada: GraphQLClient, environment: Environment) -> None:
    for case in each_case(INVALID_MERGES):
        with case as (arguments, path):
            answer = await send_message(ada, **{"text": "x", **arguments})
            assert error_codes_and_paths(answer) == [("VALIDATION", path)]
            assert await load_queued_messages(environment) == []


async def test_placeholders_without_values_are_kept(ada: GraphQLClient) -> None:
    answer = await send_message(ada, to=[{"address": "b@x.org"}], subject="{{x}}", text="{{y}}")
    assert answer["messages"][0]["subject"] == "{{x}}"


def test_merge_value_is_not_expanded_and_length_is_limited() -> None:
    assert (
        text_templates.fill_placeholders("{{a}}", {"a": "{{b}}", "b": "c"}, "text", max_length=100)
        == "{{b}}"
    )
    with pytest.raises(InvalidInput):
        text_templates.fill_placeholders("{{a}}" * 11, {"a": "x" * 10}, "text", max_length=100)


async def test_merge_over_quota_warns_about_missing_copies(
    ada: GraphQLClient, environment: Environment
) -> None:
    sent_messages = (
        await send_message(ada, text="x" * 500, to=[{"address": "carol@example.net"}])
    )["messages"]
    assert len(sent_messages) == 1
    (user,) = await environment.database.read(
        select(col(User.used)).where(col(User.id) == ada.user.id)
    )
    environment.use_options_unless_outdated(
        CommittedOptions(replace(environment.options, users_default_quota=3 * user.used + 100), 1)
    )
    answer = await send_message(
        ada, text="x" * 500, mailMerge=[merge_entry(name) for name in ("carol", "dave", "erin")]
    )
    assert answer["errors"] == []
    assert [message["to"][0]["address"][:4] for message in answer["messages"]] == ["caro", "dave"]
    assert len(answer["submissions"]) == 3
    assert [warning["code"] for warning in answer["warnings"]] == ["NOT_SAVED_TO_SENT"]
    assert len(await load_queued_messages(environment)) == 4
    # Restore the quota that the domain's counters assume.
    environment.use_options_unless_outdated(CommittedOptions(environment.initial_options, 2))


async def test_merge_statement_count_is_independent_of_entry_count(
    ada: GraphQLClient, statements: list[Any]
) -> None:
    await send_message(ada, text="x", mailMerge=[merge_entry("warm")])
    counts = []
    for entry_count in (1, 32):
        del statements[:]
        assert not (
            await send_message(
                ada, text="x", mailMerge=[merge_entry(f"c{n}") for n in range(entry_count)]
            )
        )["errors"]
        counts.append(len(statements))
    assert counts[0] == counts[1]
