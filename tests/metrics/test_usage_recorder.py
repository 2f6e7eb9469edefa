"""Usage counters in memory: what is counted for which key, and the limit of keys."""

import random

import pytest

from models.metrics import usage_recorder
from models.metrics.latency_histogram import LATENCY_BOUNDS, percentile_seconds
from models.metrics.names import MetricName, MetricSetKind
from models.metrics.usage_recorder import (
    COMMAND_ERRORS,
    COMMAND_TIME,
    COMMANDS,
    MESSAGES_IN,
    MESSAGES_OUT,
    OTHER_ID,
    PLATFORM_ID,
    POSITIONS,
    SIGN_INS,
    StepKey,
    UsageCaller,
    UsageRecorder,
    UsageTable,
    smtp_command_name,
)
from models.observability.metrics import OTHER

DOMAIN, STEP = 7, 600


def test_operation_is_counted_for_all_its_keys() -> None:
    recorder = UsageRecorder()
    caller = UsageCaller(3, "192.0.2.1", 11)
    recorder.count_api_operation("Inbox", caller, 0.25, has_failed=False)
    recorder.count_api_operation("Inbox", caller, 0.5, has_failed=True)
    recorder.count_smtp_command(
        smtp_command_name("SMTP", "RCPT"), UsageCaller(ip="192.0.2.1"), 0.1, has_failed=True
    )
    for metric_type, key, expected in (
        (MetricSetKind.USER, 3, [2, 1, 750_000]),
        (MetricSetKind.SESSION, 11, [2, 1, 750_000]),
        (MetricSetKind.COMMAND, "Inbox", [2, 1, 750_000]),
        (MetricSetKind.COMMAND, "SMTP RCPT", [1, 1, 100_000]),
        (MetricSetKind.IP, "192.0.2.1", [3, 2, 850_000]),
    ):
        row = recorder.tables[metric_type].rows[key]
        assert [row[COMMANDS], row[COMMAND_ERRORS], row[COMMAND_TIME]] == expected
    recorder.add_counts_to_domains_and_platform({3: DOMAIN}, STEP)
    assert recorder.tables[MetricSetKind.DOMAIN].rows[DOMAIN][COMMANDS] == 2
    assert recorder.totals[COMMANDS] == 3


def test_increments_above_the_limit_are_counted_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_recorder, "MAX_STEP_ROWS", 3)
    recorder = UsageRecorder()
    lost_before = usage_recorder.LOST_INCREMENTS.value()
    for domain_id in range(1, 6):  # each has a row besides the one of the platform
        recorder.count_received_message(UsageCaller(3), domain_id, 100)
    recorder.add_counts_to_domains_and_platform({}, STEP)
    assert usage_recorder.LOST_INCREMENTS.value() == lost_before + 3
    assert len(recorder.take_step_rows()) == 3


def test_settled_counts_are_increments_of_domain_and_platform() -> None:
    recorder = UsageRecorder()
    recorder.count_received_message(UsageCaller(3, "192.0.2.1"), DOMAIN, 100)
    recorder.count_sent_message(4, 50)
    recorder.count_sent_message(None, 50)
    recorder.add_counts_to_domains_and_platform({}, STEP)  # the domain of user 4 is not known yet
    assert recorder.unsettled_user_ids() == [4]
    recorder.add_counts_to_domains_and_platform({4: None}, STEP)
    rows = recorder.take_step_rows()
    assert rows.keys() == {StepKey(PLATFORM_ID, STEP), StepKey(DOMAIN, STEP)}
    assert rows[StepKey(DOMAIN, STEP)][MESSAGES_IN] == 1
    platform = rows[StepKey(PLATFORM_ID, STEP)]
    assert (platform[MESSAGES_IN], platform[MESSAGES_OUT]) == (1, 2)
    recorder.count_sent_message(None, 50)
    recorder.add_counts_to_domains_and_platform({}, STEP)
    recorder.add_step_rows(rows)  # they could not be written
    assert recorder.take_step_rows()[StepKey(PLATFORM_ID, STEP)][MESSAGES_OUT] == 3
    assert recorder.take_step_rows() == {}


def test_least_used_keys_are_evicted_and_other_keeps_their_sum() -> None:
    recorder, randomness = UsageRecorder(max_keys=100), random.Random(5)  # noqa: S311 - reproducible
    expected: dict[str, int] = {}
    for _ in range(20_000):
        key = f"192.0.2.{min(int(randomness.expovariate(0.02)), 2000)}"
        expected[key] = expected.get(key, 0) + 1
        recorder.count_sign_in(UsageCaller(ip=key), has_failed=False)
    rows = recorder.tables[MetricSetKind.IP].rows
    assert len(rows) <= 100
    assert sum(row[SIGN_INS] for row in rows.values()) == 20_000
    assert rows[OTHER][SIGN_INS] > 0
    for key in sorted(expected, key=expected.__getitem__)[-5:]:
        assert key in rows


def test_number_of_keys_of_all_tables_is_limited() -> None:
    recorder = UsageRecorder(max_keys=50)
    for number in range(1, 500):
        caller = UsageCaller(number, f"2001:db8::{number:x}", number)
        recorder.count_api_operation(f"Operation{number}", caller, None, has_failed=False)
        recorder.count_received_message(caller, number, 10)
        recorder.add_counts_to_domains_and_platform({number: number}, STEP)
    for metric_type, table in recorder.tables.items():
        assert len(table.rows) <= 50, metric_type
        assert table.rows[table.other_key][COMMANDS] > 0, metric_type
        assert sum(row[COMMANDS] for row in table.rows.values()) == 499, metric_type


def test_owners_above_the_limit_count_for_the_platform() -> None:
    recorder = UsageRecorder(max_keys=10)
    for user_id in range(1, 31):
        recorder.count_sent_message(user_id, 1)
    recorder.add_counts_to_domains_and_platform(dict.fromkeys(range(1, 31), DOMAIN), STEP)
    assert recorder.totals[MESSAGES_OUT] == 30
    assert recorder.tables[MetricSetKind.DOMAIN].rows[DOMAIN][MESSAGES_OUT] == 10


def test_oldest_of_equally_used_keys_is_evicted() -> None:
    table = UsageTable(OTHER_ID, 10)
    for key in range(1, 11):
        row = table.add_row(key)
        row[0], row[1] = 1, 100 - key  # uses, and the time of the last one
    table.add_row(99)
    assert set(table.rows) == {OTHER_ID, 99, *range(1, 9)}


def test_reset_sets_counters_of_all_keys_to_zero() -> None:
    recorder = UsageRecorder()
    recorder.count_sign_in(UsageCaller(3, "192.0.2.1"), has_failed=False)
    recorder.count_sent_message(3, 50)
    recorder.add_counts_to_domains_and_platform({3: DOMAIN}, STEP)
    recorder.set_counters_to_zero([MetricName.SIGN_INS])
    for rows in ([recorder.totals], *(table.rows.values() for table in recorder.tables.values())):
        assert all(row[SIGN_INS] == 0 for row in rows)
    assert recorder.totals[MESSAGES_OUT] == 1
    assert recorder.take_step_rows()[StepKey(DOMAIN, STEP)][SIGN_INS] == 1


def test_only_commands_and_sign_ins_make_a_user_active() -> None:
    recorder = UsageRecorder()
    recorder.count_api_operation("Inbox", UsageCaller(1), 0.1, has_failed=False)
    recorder.count_sign_in(UsageCaller(2), has_failed=False)
    recorder.count_sign_in(UsageCaller(3), has_failed=True)
    recorder.count_received_message(UsageCaller(4), DOMAIN, 100)
    assert set(recorder.active_user_ids(60_000)) == {1, 2}


def test_percentiles_are_within_a_bucket_of_the_true_ones() -> None:
    randomness = random.Random(9)  # noqa: S311 - reproducible
    seconds = sorted(randomness.lognormvariate(-4, 1.5) for _ in range(5000))
    recorder = UsageRecorder()
    for value in seconds:
        recorder.count_api_operation("Inbox", UsageCaller(), value, has_failed=False)
    recorder.add_counts_to_domains_and_platform({}, STEP)
    (row,) = recorder.take_step_rows().values()
    counts = row[-len(LATENCY_BOUNDS) - 1 :]
    assert sum(counts) == 5000
    for share in (0.5, 0.95):
        true_value, estimate = seconds[int(share * 5000)], percentile_seconds(counts, share)
        assert estimate is not None
        assert true_value / 2.5 <= estimate <= true_value * 2.5
    assert percentile_seconds([0] * len(counts), 0.5) is None
    assert percentile_seconds([0] * (len(counts) - 1) + [3], 0.5) == 10.0


def test_positions_of_counters_differ() -> None:
    assert len(set(POSITIONS.values())) == len(POSITIONS)
