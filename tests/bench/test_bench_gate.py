"""Tests of the benchmark gate of CI: what it accepts and what it watches."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bench import clients
from bench.gate import (
    ACCEPTED_RATIOS_FILE,
    COMPARED_WITH_PAGE,
    MAX_INCREASE,
    MEASURED_WORKLOADS,
    Ratios,
    find_exceeded_ratios,
    measure_lowest_ratios,
)
from bench.scenarios import query_costs
from bench.scenarios.query_costs import COST_LIMITS, WITHOUT_STATISTICS, QueryCost
from bench.servers.compared_servers import DatabaseKind


def test_accepted_ratios_cover_measured_workloads() -> None:
    accepted_ratios = orjson.loads(ACCEPTED_RATIOS_FILE.read_bytes())
    assert set(accepted_ratios) == {*MEASURED_WORKLOADS, *COMPARED_WITH_PAGE}
    assert all(ratio > 0 for ratio in accepted_ratios.values())


def test_ratio_above_max_increase_is_reported() -> None:
    accepted_ratios = {"inbox page": 2.0, "mailboxes": 1.0}
    assert find_exceeded_ratios(accepted_ratios, accepted_ratios) == []
    assert (
        find_exceeded_ratios({"inbox page": 2.0 * MAX_INCREASE, "mailboxes": 0.5}, accepted_ratios)
        == []
    )
    (line,) = find_exceeded_ratios(
        {"inbox page": 2.0, "mailboxes": MAX_INCREASE + 0.01}, accepted_ratios
    )
    assert line.startswith("mailboxes: 1.31 times")


async def test_ratios_above_their_limits_are_measured_at_most_three_times() -> None:
    accepted_ratios = {"inbox page": 2.0, "mailboxes": 1.0}

    async def measured(*results: tuple[float, float]) -> tuple[Ratios, int]:
        remaining = [dict(zip(accepted_ratios, result, strict=True)) for result in results]

        async def measure() -> Ratios:
            return remaining.pop(0)

        return await measure_lowest_ratios(measure, accepted_ratios), len(remaining)

    assert await measured((2.1, 1.1), (1.0, 1.0)) == ({"inbox page": 2.1, "mailboxes": 1.1}, 1)
    assert await measured((2.7, 1.1), (2.5, 1.4), (1.0, 1.0)) == (
        {"inbox page": 2.5, "mailboxes": 1.1},
        1,
    )
    lowest, unused_count = await measured((3.0, 1.0), (2.9, 1.2), (2.8, 1.4), (1.0, 1.0))
    assert (lowest, unused_count) == ({"inbox page": 2.8, "mailboxes": 1.0}, 1)
    assert len(find_exceeded_ratios(lowest, accepted_ratios)) == 1


def test_each_client_document_has_cost_limits() -> None:
    assert set(COST_LIMITS) == set(clients.DOCUMENTS)


def test_query_cost_above_limits_is_reported() -> None:
    page = "page with threads"
    limits = COST_LIMITS[page]
    allowed_cost = QueryCost(limits.statements, limits.steps, limits.rows, ("messages_by_age",))
    assert (
        query_costs.find_exceeded_limits(
            {page: allowed_cost, page + WITHOUT_STATISTICS: allowed_cost}, COST_LIMITS
        )
        == []
    )
    exceeding_cost = replace(
        allowed_cost, statements=9, rows=10_000, indexes=("ix_messages_user_id", "sort")
    )
    assert query_costs.find_exceeded_limits(
        {page + WITHOUT_STATISTICS: exceeding_cost}, COST_LIMITS
    ) == [
        f"{page}{WITHOUT_STATISTICS}: 9 statements, at most {limits.statements} allowed",
        f"{page}{WITHOUT_STATISTICS}: 10000 rows, at most {limits.rows} allowed",
        f"{page}{WITHOUT_STATISTICS}: the plan has ix_messages_user_id, sort",
    ]


@pytest.mark.parametrize("messages", [1000, 3000])
async def test_cost_of_mailbox_page_does_not_grow_with_messages(
    tmp_path: Path, messages: int
) -> None:
    costs = await query_costs.measure_query_costs(
        DatabaseKind.SQLITE, tmp_path, message_count=messages, other_account_count=1
    )
    list_cost = costs["lists of different length"]
    assert list_cost.statements > 0
    assert 0 < list_cost.steps <= COST_LIMITS["lists of different length"].steps
    assert "messages_by_age" in list_cost.indexes
    assert set(costs) == {
        name + suffix for name in COST_LIMITS for suffix in ("", WITHOUT_STATISTICS)
    }
