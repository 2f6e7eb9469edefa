"""The gate for CI: what it lets pass, and that it knows what it watches."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bench import clients
from bench.gate import KEPT, MOST, WATCHED, worse
from bench.scenarios import query_costs
from bench.scenarios.query_costs import WANTED, WITHOUT, Cost
from bench.servers.compared_servers import Kind


def test_what_is_kept_is_what_is_watched() -> None:
    kept = orjson.loads(KEPT.read_bytes())
    assert set(kept) == set(WATCHED)
    assert all(ratio > 0 for ratio in kept.values())


def test_a_request_may_become_dearer_by_a_part_only() -> None:
    kept = {"inbox page": 2.0, "mailboxes": 1.0}
    assert worse(kept, kept) == []
    assert worse({"inbox page": 2.0 * MOST, "mailboxes": 0.5}, kept) == []
    (line,) = worse({"inbox page": 2.0, "mailboxes": MOST + 0.01}, kept)
    assert line.startswith("mailboxes: 1.31 times")


def test_each_document_of_a_client_has_its_limits() -> None:
    assert set(WANTED) == set(clients.DOCUMENTS)


def test_what_reads_more_than_it_may_is_told() -> None:
    page = "page with threads"
    most = WANTED[page]
    good = Cost(most.statements, most.steps, most.rows, ("messages_by_age",))
    assert query_costs.worse({page: good, page + WITHOUT: good}, WANTED) == []
    bad = replace(good, statements=9, rows=10_000, indexes=("ix_messages_user_id", "sort"))
    assert query_costs.worse({page + WITHOUT: bad}, WANTED) == [
        f"{page}{WITHOUT}: 9 statements, at most {most.statements} allowed",
        f"{page}{WITHOUT}: 10000 rows, at most {most.rows} allowed",
        f"{page}{WITHOUT}: the plan has ix_messages_user_id, sort",
    ]


@pytest.mark.parametrize("messages", [1000, 3000])
async def test_what_a_page_of_a_folder_reads_does_not_grow(tmp_path: Path, messages: int) -> None:
    found = await query_costs.measured(Kind.SQLITE, tmp_path, messages=messages, neighbours=1)
    lists = found["lists of different length"]
    assert lists.statements > 0
    assert 0 < lists.steps <= WANTED["lists of different length"].steps
    assert "messages_by_age" in lists.indexes
    assert set(found) == {name + more for name in WANTED for more in ("", WITHOUT)}
