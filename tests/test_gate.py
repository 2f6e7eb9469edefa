"""The gate for CI: what it lets pass, and that it knows what it watches."""

import orjson

from bench.gate import KEPT, MOST, WATCHED, worse


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
