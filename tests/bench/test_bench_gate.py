"""The gate for CI: what it lets pass, and that it knows what it watches."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bench import clients
from bench.gate import (
    ACCEPTED_RATIOS_FILE,
    MAX_INCREASE,
    MEASURED_WORKLOADS,
    find_exceeded_ratios,
)
from bench.scenarios import query_costs
from bench.scenarios.query_costs import COST_LIMITS, WITHOUT_STATISTICS, QueryCost
from bench.servers.compared_servers import DatabaseKind


def test_what_is_kept_is_what_is_watched() -> None:
    kept = orjson.loads(ACCEPTED_RATIOS_FILE.read_bytes())
    assert set(kept) == set(MEASURED_WORKLOADS)
    assert all(ratio > 0 for ratio in kept.values())


def test_a_request_may_become_dearer_by_a_part_only() -> None:
    kept = {"inbox page": 2.0, "mailboxes": 1.0}
    assert find_exceeded_ratios(kept, kept) == []
    assert find_exceeded_ratios({"inbox page": 2.0 * MAX_INCREASE, "mailboxes": 0.5}, kept) == []
    (line,) = find_exceeded_ratios({"inbox page": 2.0, "mailboxes": MAX_INCREASE + 0.01}, kept)
    assert line.startswith("mailboxes: 1.31 times")


def test_each_document_of_a_client_has_its_limits() -> None:
    assert set(COST_LIMITS) == set(clients.DOCUMENTS)


def test_what_reads_more_than_it_may_is_told() -> None:
    page = "page with threads"
    most = COST_LIMITS[page]
    good = QueryCost(most.statements, most.steps, most.rows, ("messages_by_age",))
    assert (
        query_costs.find_exceeded_limits({page: good, page + WITHOUT_STATISTICS: good}, COST_LIMITS)
        == []
    )
    bad = replace(good, statements=9, rows=10_000, indexes=("ix_messages_user_id", "sort"))
    assert query_costs.find_exceeded_limits({page + WITHOUT_STATISTICS: bad}, COST_LIMITS) == [
        f"{page}{WITHOUT_STATISTICS}: 9 statements, at most {most.statements} allowed",
        f"{page}{WITHOUT_STATISTICS}: 10000 rows, at most {most.rows} allowed",
        f"{page}{WITHOUT_STATISTICS}: the plan has ix_messages_user_id, sort",
    ]


@pytest.mark.parametrize("messages", [1000, 3000])
async def test_what_a_page_of_a_folder_reads_does_not_grow(tmp_path: Path, messages: int) -> None:
    found = await query_costs.measure_query_costs(
        DatabaseKind.SQLITE, tmp_path, message_count=messages, neighbour_count=1
    )
    lists = found["lists of different length"]
    assert lists.statements > 0
    assert 0 < lists.steps <= COST_LIMITS["lists of different length"].steps
    assert "messages_by_age" in lists.indexes
    assert set(found) == {name + more for name in COST_LIMITS for more in ("", WITHOUT_STATISTICS)}
