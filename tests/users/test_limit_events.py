"""Events of reached limits: values, repetition and visibility."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from mail.delivery import local_delivery
from mail.envelope.delivery_jobs import DeliveryJob, JobRecipient
from mail.smtp import lmtp
from models.domains.tables import Domain
from models.errors import OverQuota
from models.runtime.environment import CommittedOptions, Environment
from resolvers.auth.authentication import wait_for_background_tasks
from tests.conftest import GraphQLClient, ManualClock, deliver_to
from tests.support.accounts.quota_accounts import (
    QUOTA,
    LimitEventFields,
    count_warning_tasks,
    load_limit_events,
    load_recipient_refusal,
    message_of_size,
    receive_messages_of_sizes,
    set_user_limits,
    storage_event,
    try_send_message,
)
from tests.support.accounts.user_operations import count_statements_by_user_count
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.operations.bulk_operations import MESSAGE_DELETE, MESSAGE_IMPORT, UNDO_MUTATION
from tests.support.servers.live_server import LiveServer, wait_until


@pytest.mark.parametrize(
    ("used_before", "size", "expected"),
    [
        (7_000, 999, []),
        (7_000, 1_000, [storage_event("WARNING", 8_000)]),
        (7_000, 1_001, [storage_event("WARNING", 8_001)]),
        (7_000, 2_499, [storage_event("WARNING", 9_499)]),
        (7_000, 2_500, [storage_event("CRITICAL", 9_500)]),  # one row for two thresholds
        (7_000, 3_000, [storage_event("FULL", 10_000)]),
        (7_999, 1_499, [storage_event("WARNING", 9_498)]),
        (8_000, 1_499, [storage_event("WARNING", 8_000)]),  # no further event
        (8_000, 1_500, [storage_event("WARNING", 8_000), storage_event("CRITICAL", 9_500)]),
        (9_500, 499, [storage_event("CRITICAL", 9_500)]),
        (9_500, 500, [storage_event("CRITICAL", 9_500), storage_event("FULL", 10_000)]),
    ],
)
async def test_storage_over_a_threshold_is_reported_once(
    ada: GraphQLClient, used_before: int, size: int, expected: list[LimitEventFields]
) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, used_before, size)
    assert await load_limit_events(ada) == expected
    assert await count_warning_tasks(ada.environment) == len(expected)


async def test_user_without_limits_gets_no_event(ada: GraphQLClient) -> None:
    await set_user_limits(ada, quota=0, received_per_hour=0, recipients_per_day=0)
    await receive_messages_of_sizes(ada, 5_000, 5_000)
    assert await try_send_message(ada, "a@example.net") == []
    assert (await load_limit_events(ada), await count_warning_tasks(ada.environment)) == ([], 0)


@pytest.mark.usefixtures("verify_consistency")
async def test_concurrent_deliveries_report_a_threshold_once(ada: GraphQLClient) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 5_000)
    await asyncio.gather(*(receive_messages_of_sizes(ada, 500) for _ in range(8)))  # to 9,000 bytes
    assert await load_limit_events(ada) == [storage_event("WARNING", 8_000)]
    assert await count_warning_tasks(ada.environment) == 1


async def test_delivery_below_thresholds_runs_no_extra_statement(
    ada: GraphQLClient, statements: list[str]
) -> None:
    await set_user_limits(ada, quota=QUOTA)
    statement_counts: list[int] = []
    for size in (1_000, 6_000, 500, 500, 500):  # the fourth reaches the threshold
        raw = message_of_size(size, f"{size} {len(statement_counts)}")
        count_before = len(statements)
        await deliver_to(ada, raw)
        delivery_statements = statements[count_before:]
        statement_counts.append(len(delivery_statements))
        assert sum("UPDATE users" in statement for statement in delivery_statements) == (
            2 if len(statement_counts) == 4 else 1
        )
    assert statement_counts[0] == statement_counts[1] == statement_counts[2] == statement_counts[4]
    # two journal rows with their positions, a task and the user
    assert statement_counts[3] == statement_counts[0] + 6


@pytest.mark.usefixtures("verify_consistency")
async def test_threshold_that_is_passed_again_is_reported_again(ada: GraphQLClient) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 7_500, 600)
    await receive_messages_of_sizes(ada, 600)  # above the threshold
    response = await ada("{ viewer { user { messages(first: 2) { nodes { id } } } } }")
    newest_ids = [node["id"] for node in response["viewer"]["user"]["messages"]["nodes"]]
    deleted = await ada(MESSAGE_DELETE, input={"select": {"ids": newest_ids}})
    assert len(await load_limit_events(ada)) == 1
    await receive_messages_of_sizes(ada, 600)
    assert await load_limit_events(ada) == [storage_event("WARNING", 8_100)] * 2
    assert await count_warning_tasks(ada.environment) == 2
    # Restored messages count again.
    undo_response = await ada(UNDO_MUTATION, token=deleted["messageDelete"]["undo"]["token"])
    assert undo_response["undo"]["errors"] == []
    await receive_messages_of_sizes(ada, 300)
    assert (await load_limit_events(ada))[2:] == [storage_event("CRITICAL", 9_600)]


@pytest.mark.usefixtures("verify_consistency")
async def test_undo_of_delete_can_pass_a_threshold(ada: GraphQLClient) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 7_000, 2_000)
    select = {"select": {"mailbox": {"path": "INBOX"}, "uids": "1"}}
    token = (await ada(MESSAGE_DELETE, input=select))["messageDelete"]["undo"]["token"]
    await receive_messages_of_sizes(ada, 1_500)
    event_count = len(await load_limit_events(ada))
    assert (await ada(UNDO_MUTATION, token=token))["undo"]["errors"][0]["code"] == "QUOTA_EXCEEDED"
    await set_user_limits(ada, quota=11_000)
    assert (await ada(UNDO_MUTATION, token=token))["undo"]["errors"] == []
    assert (await load_limit_events(ada))[event_count:] == [
        ("STORAGE", "CRITICAL", 10_500, 11_000, False)
    ]
    assert await count_warning_tasks(ada.environment) == event_count + 1


@pytest.mark.parametrize("method", ["uploaded", "sent"])
async def test_upload_and_sent_copy_can_pass_a_threshold(ada: GraphQLClient, method: str) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 7_000)
    if method == "uploaded":
        raw = message_of_size(1_500).decode()
        arguments = {"mailbox": {"path": "INBOX"}, "raw": raw}
        assert (await ada(MESSAGE_IMPORT, input=arguments))["messageImport"]["errors"] == []
    else:
        assert await try_send_message(ada, "carol@example.net", text="y" * 1_000 + "\n") == []
    ((limit, level, used, _, refused),) = await load_limit_events(ada)
    assert (limit, level, 8_000 <= used < 9_500, refused) == ("STORAGE", "WARNING", True, False)
    assert await count_warning_tasks(ada.environment) == 1


async def test_threshold_settings_apply_at_once(ada: GraphQLClient, root: GraphQLClient) -> None:
    document = """mutation ($key: String!, $value: JSON) {
      settingSet(input: {key: $key, value: $value}) { errors { code path
        ... on ValidationError { constraint } } } }"""

    async def change_setting(key: str, value: Any) -> Any:
        errors = (await root(document, key=key, value=value))["settingSet"]["errors"]
        return errors[0].get("constraint") if errors else None

    await set_user_limits(ada, quota=QUOTA)
    assert await change_setting("limits.warningPercent", 50) is None
    assert await change_setting("quota.warningEmails", False) is None
    await receive_messages_of_sizes(ada, 5_000)
    assert await load_limit_events(ada) == [storage_event("WARNING", 5_000)]
    assert await count_warning_tasks(ada.environment) == 0
    assert await change_setting("limits.criticalPercent", 0) is None
    await receive_messages_of_sizes(ada, 4_900)
    assert len(await load_limit_events(ada)) == 1
    for key, value, rule in (
        ("limits.warningPercent", 100, "MAX"),
        ("limits.criticalPercent", -1, "MIN"),
        ("limits.criticalPercent", "high", "TYPE"),
        ("quota.warningEmails", 1, "TYPE"),
        ("quota.warningEmails", "off", "TYPE"),
        ("quota.warningEmails", None, "TYPE"),
    ):
        assert await change_setting(key, value) == rule


async def test_refusals_of_full_mailbox_are_reported_once_a_day(
    ada: GraphQLClient, clock: ManualClock, statements: list[str]
) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, QUOTA)
    assert await load_limit_events(ada) == [storage_event("FULL", QUOTA)]
    count_before = len(statements)
    assert (
        await asyncio.gather(*(load_recipient_refusal(ada) for _ in range(8))) == ["OverQuota"] * 8
    )
    assert (await load_limit_events(ada))[1:] == [storage_event("FULL", QUOTA, refused=True)]
    assert await count_warning_tasks(ada.environment) == 1  # the one about the full mailbox
    count_before = len(statements)
    for _ in range(5):
        assert await load_recipient_refusal(ada) == "OverQuota"
    assert all(statement.startswith("SELECT") for statement in statements[count_before:])
    assert len(statements) - count_before == 5 * 2
    clock.tick(hours=23, minutes=59)
    await load_recipient_refusal(ada)
    assert len(await load_limit_events(ada)) == 2
    clock.tick(minutes=1)
    await load_recipient_refusal(ada)
    assert (await load_limit_events(ada))[2:] == [storage_event("FULL", QUOTA, refused=True)]
    assert await count_warning_tasks(ada.environment) == 1


async def test_refused_message_is_reported_daily_and_after_a_threshold(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 5_000)

    async def expect_refusal(size: int) -> None:
        with pytest.raises(OverQuota):
            await receive_messages_of_sizes(ada, size)

    for _ in range(3):
        await expect_refusal(6_000)
    assert await load_limit_events(ada) == [storage_event("NORMAL", 5_000, refused=True)]
    assert await count_warning_tasks(ada.environment) == 0  # a smaller message would fit
    await receive_messages_of_sizes(ada, 3_500)
    assert await count_warning_tasks(ada.environment) == 1
    await asyncio.gather(expect_refusal(2_000), expect_refusal(2_000), expect_refusal(2_000))
    assert (await load_limit_events(ada))[1:] == [
        storage_event("WARNING", 8_500),
        storage_event("WARNING", 8_500, refused=True),
    ]
    assert await count_warning_tasks(ada.environment) == 2
    clock.tick(days=1)
    await expect_refusal(2_000)
    assert (await load_limit_events(ada))[3:] == [storage_event("WARNING", 8_500, refused=True)]
    assert await count_warning_tasks(ada.environment) == 2


@pytest.mark.usefixtures("verify_consistency")
async def test_lmtp_clients_and_own_queue_get_temporary_failures(
    ada: GraphQLClient, tmp_path: Path
) -> None:
    environment = ada.environment
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 9_000)
    listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    lmtp_client = await connect_lmtp(listener.port)
    for n in range(3):
        await lmtp_client.start_data(ada.address)
        lmtp_client.send_bytes(message_of_size(2_000, f"{n}") + b".\r\n")
        assert (await lmtp_client.read_reply()).startswith("452 4.2.2")
    assert (await load_limit_events(ada))[1:] == [storage_event("WARNING", 9_000, refused=True)]
    recipient = JobRecipient(1, ada.address, 1, environment.now() + timedelta(days=5))
    sender = "bob@example.org"
    job = DeliveryJob(1, 2, "q", 3, 4, 5, sender, "example.org", environment.now(), [recipient])
    for n in range(2):
        results = await local_delivery.deliver_to_local_recipients(
            environment, job, message_of_size(2_000, f"own {n}")
        )
        assert results[1].reply_code == 452
    assert len(await load_limit_events(ada)) == 2
    await set_user_limits(ada, received_per_hour=1, quota=1 << 30)
    assert await lmtp_client.run_command(f"MAIL FROM:<{sender}>") == "250 2.1.0 Sender OK"
    for _ in range(2):
        assert (await lmtp_client.run_command(f"RCPT TO:<{ada.address}>")).startswith("450 4.2.1")
    assert (await load_limit_events(ada))[2:] == [("RECEIVED", "FULL", 1, 1, True)]
    await lmtp_client.close()
    await listener.close(1)


async def test_received_limit_is_reported_when_reached_and_exceeded(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    await set_user_limits(ada, received_per_hour=3)
    for n in range(3):
        assert await load_limit_events(ada) == []
        await deliver_to(ada, f"{n}")
    reached_event = ("RECEIVED", "FULL", 3, 3, False)
    refused_event = ("RECEIVED", "FULL", 3, 3, True)
    assert await load_limit_events(ada) == [reached_event]
    clock.tick(minutes=59)
    for _ in range(4):
        assert await load_recipient_refusal(ada) == "RateLimited"
    assert await load_limit_events(ada) == [reached_event, refused_event]
    clock.tick(minutes=1)
    for n in range(3):
        await deliver_to(ada, f"again {n}")
    await load_recipient_refusal(ada)
    assert await load_limit_events(ada) == [reached_event, refused_event] * 2
    assert await count_warning_tasks(ada.environment) == 0


@pytest.mark.parametrize(
    ("numbers", "used"), [((1, 1, 1), 3), ((2, 1), 3), ((3,), 3), ((1, 1), None)]
)
async def test_recipient_limit_is_reported_by_message_that_reaches_it(
    ada: GraphQLClient, numbers: Sequence[int], used: int | None
) -> None:
    await set_user_limits(ada, recipients_per_day=3)
    for n, recipient_count in enumerate(numbers):
        assert await load_limit_events(ada) == []
        assert (
            await try_send_message(
                ada, *(f"{n}-{number}@example.net" for number in range(recipient_count))
            )
            == []
        )
    assert await load_limit_events(ada) == (
        [("RECIPIENTS", "FULL", used, 3, False)] if used else []
    )


async def test_message_over_the_remaining_recipients_is_refused(ada: GraphQLClient) -> None:
    await set_user_limits(ada, recipients_per_day=3)
    assert await try_send_message(ada, *(f"{n}@example.net" for n in range(4))) == ["RATE_LIMITED"]
    assert await try_send_message(ada, "a@example.net", "b@example.net") == []
    assert await try_send_message(ada, "c@example.net", "d@example.net") == ["RATE_LIMITED"]
    assert await try_send_message(ada, "c@example.net") == []  # refused recipients did not count
    assert await try_send_message(ada, "d@example.net") == ["RATE_LIMITED"]


@pytest.mark.parametrize("options", [{}, {"idempotencyKey": "once"}])
async def test_refused_submission_is_reported_once_a_day(
    ada: GraphQLClient, clock: ManualClock, statements: list[str], options: dict[str, Any]
) -> None:
    await set_user_limits(ada, recipients_per_day=2)
    assert await try_send_message(ada, "a@example.net", "b@example.net") == []
    assert await try_send_message(ada, "c@example.net", options={"validateOnly": True}) == [
        "RATE_LIMITED"
    ]
    await wait_for_background_tasks(ada.environment)
    reached_event = ("RECIPIENTS", "FULL", 2, 2, False)
    assert await load_limit_events(ada) == [reached_event]  # validateOnly stores no event
    assert await try_send_message(ada, "c@example.net", options=options) == ["RATE_LIMITED"]
    await wait_for_background_tasks(ada.environment)
    assert await load_limit_events(ada) == [reached_event, ("RECIPIENTS", "FULL", 2, 2, True)]
    for _ in range(3):
        count_before = len(statements)
        assert await try_send_message(ada, "c@example.net") == ["RATE_LIMITED"]
        await wait_for_background_tasks(ada.environment)
        assert all("api_keys" in s or s.startswith("SELECT") for s in statements[count_before:])
    assert len(await load_limit_events(ada)) == 2
    clock.tick(days=1)
    assert await try_send_message(ada, "a@example.net", "b@example.net") == []
    await try_send_message(ada, "c@example.net")
    await wait_for_background_tasks(ada.environment)
    assert len(await load_limit_events(ada)) == 4


@pytest.mark.usefixtures("verify_consistency")
async def test_concurrent_refused_messages_report_the_limit_once(ada: GraphQLClient) -> None:
    await set_user_limits(ada, recipients_per_day=3)
    answers = await asyncio.gather(*(try_send_message(ada, f"{n}@example.net") for n in range(8)))
    await wait_for_background_tasks(ada.environment)
    assert sum(errors == [] for errors in answers) == 3
    assert await load_limit_events(ada) == [
        ("RECIPIENTS", "FULL", 3, 3, False),
        ("RECIPIENTS", "FULL", 3, 3, True),
    ]


LIMIT_SUBSCRIPTION = """subscription { changes(types: [LIMIT_REACHED]) { events { type
  user { username } ... on LimitChange { limitKind level used limit refused resetsAt } } } }"""


async def test_only_subscribers_of_the_user_get_limit_events(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    ada_socket = await live_server.follow(ada, LIMIT_SUBSCRIPTION)
    bob_socket = await live_server.follow(bob, LIMIT_SUBSCRIPTION)
    await wait_until(lambda: live_server.subscriber_count == 2)
    await set_user_limits(ada, quota=QUOTA, received_per_hour=2)
    await receive_messages_of_sizes(ada, 8_000, 500)
    await receive_messages_of_sizes(bob, 500)
    await wait_until(lambda: len(ada_socket.events) == 2)
    common_fields = {"type": "LIMIT_REACHED", "user": {"username": "ada"}, "refused": False}
    assert ada_socket.events == [
        {**common_fields, "limitKind": "STORAGE", "level": "WARNING", "used": 8_000, "limit": QUOTA,
         "resetsAt": None},
        {**common_fields, "limitKind": "RECEIVED", "level": "FULL", "used": 2, "limit": 2,
         "resetsAt": "2030-01-01T01:00:00Z"},
    ]  # fmt: skip
    assert bob_socket.events == []
    for socket in (ada_socket, bob_socket):
        await socket.unsubscribe()


LIMITS_QUERY = """{ users(first: 50) { nodes { username limits { quota { limit used source level }
  recipientsPerDay { used source level resetsAt }
  receivedPerHour { used source level resetsAt } } } } }"""


async def test_limits_have_source_level_and_usage(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    async def load_limits() -> Any:
        (node,) = (await root(LIMITS_QUERY))["users"]["nodes"]
        return node["limits"]

    limits = await load_limits()
    platform_default = {"source": "PLATFORM", "level": "NORMAL"}
    assert limits["quota"] == {"limit": 1 << 30, "used": 0, **platform_default}
    assert limits["receivedPerHour"] == {"used": 0, "resetsAt": None, **platform_default}
    assert limits["recipientsPerDay"] == {"used": 0, "resetsAt": None, **platform_default}
    async with environment.write_session() as session:
        column_values = {"default_user_quota": QUOTA, "quota_allocated": QUOTA}
        await (await session.connection()).execute(update(Domain).values(**column_values))
    await receive_messages_of_sizes(ada, 9_500)
    assert (await load_limits())["quota"] == {
        "limit": QUOTA, "used": 9_500, "source": "DOMAIN", "level": "CRITICAL"
    }  # fmt: skip
    await set_user_limits(ada, quota=0, recipients_per_day=5, received_per_hour=1)
    await try_send_message(ada, *(f"{n}@example.net" for n in range(4)))
    limits = await load_limits()
    assert (limits["quota"]["source"], limits["quota"]["level"]) == ("USER", "NORMAL")
    assert limits["recipientsPerDay"] == {
        "used": 4, "source": "USER", "level": "WARNING", "resetsAt": "2030-01-02T00:00:00Z"
    }  # fmt: skip
    assert limits["receivedPerHour"] == {
        "used": 1, "source": "USER", "level": "FULL", "resetsAt": "2030-01-01T01:00:00Z"
    }  # fmt: skip
    await set_user_limits(ada, quota=0)


async def test_limits_of_many_users_load_in_constant_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    statement_counts = await count_statements_by_user_count(root, LIMITS_QUERY, statements)
    assert len(set(statement_counts)) == 1


async def test_disabled_thresholds_report_only_refusals(ada: GraphQLClient) -> None:
    options = replace(ada.environment.options, limits_warning_percent=0, limits_critical_percent=0)
    ada.environment.use_options_unless_outdated(CommittedOptions(options, 10**6))
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 9_900)
    with suppress(OverQuota):
        await receive_messages_of_sizes(ada, 500)
    assert await load_limit_events(ada) == [storage_event("NORMAL", 9_900, refused=True)]
    assert await count_warning_tasks(ada.environment) == 0
