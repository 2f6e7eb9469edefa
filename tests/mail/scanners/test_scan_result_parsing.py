"""What scanners say is read whatever it is, and judged by the thresholds of a recipient."""

import contextlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as some

from mail.scanners import clamd, rspamd
from mail.scanners.body_stream import STEP, body_of
from mail.scanners.circuit_breaker import Down, TooLarge
from mail.spam.scan_result import MOST, Scan
from mail.spam.verdict import FLAGGED, REFUSED, Known, Limits, Reason, decided, filtered, scored_by


@pytest.mark.parametrize(
    ("points", "score"),
    [(-3, 0), (0, 0), (4, 25), (7.99, 49), (8, 50), (11.5, 62), (15, 75), (20, 100), (900, 100)],
)
def test_points_are_a_score_between_the_thresholds(points: float, score: int) -> None:
    assert scored_by(Scan(("rspamd",), points, 15.0), Limits()) == score


@given(points=some.floats(-1e6, 1e6), junk=some.floats(0.001, 1e4), more=some.floats(0, 1e4))
def test_thresholds_are_marks_whatever_they_are(points: float, junk: float, more: float) -> None:
    limits = Limits(junk, junk + more)
    scan = Scan(("rspamd",), points, 15.0)
    score = scored_by(scan, limits)
    assert 0 <= score <= 100
    assert (score >= FLAGGED) == (points >= limits.junk)
    assert (score >= REFUSED) == (points >= limits.reject)
    verdict = decided(Known(scan=scan), [], 50, limits)
    assert verdict.refused == (points >= limits.reject)
    assert verdict.is_spam == (points >= limits.junk)


def test_a_filter_may_refuse_whatever_the_points_are() -> None:
    forced = Scan(("rspamd",), 1.0, 15.0, action="reject")
    assert decided(Known(scan=forced), [], 50).refused
    assert not decided(Known(scan=forced), [], 100).refused
    assert not decided(
        Known(scan=Scan(("rspamd",), 8.0, 15.0, action="add header")), [], 50
    ).refused
    usual = Scan(("rspamd",), 20.0, 15.0, action="reject")  # thresholds are the recipient's
    assert not decided(Known(scan=usual), [], 50, Limits(30.0, 40.0)).refused


def test_no_filter_takes_a_virus_out_of_junk() -> None:
    ill = decided(Known(scan=Scan(("clamd",), virus="X")), [], 100, Limits(viruses=False))
    assert (ill.is_spam, ill.refused, ill.reason) == (True, False, Reason.VIRUS)
    assert filtered(ill, says=False) == ill


NUMBERS = some.integers() | some.floats() | some.text() | some.none() | some.booleans()
PLAIN = some.recursive(
    NUMBERS, lambda each: some.lists(each) | some.dictionaries(some.text(), each), max_leaves=10
)
REPORTS = some.fixed_dictionaries(
    {"score": NUMBERS},
    optional={
        "required_score": NUMBERS,
        "action": PLAIN,
        "is_skipped": PLAIN,
        "symbols": PLAIN
        | some.dictionaries(
            some.text(),
            some.fixed_dictionaries({"score": NUMBERS}, optional={"description": PLAIN}),
        ),
    },
)


@given(some.binary())
def test_no_answer_of_a_filter_breaks_us(raw: bytes) -> None:
    try:
        found = rspamd.read(raw)
    except Down:
        return
    orjson.dumps(found.stored())


@given(REPORTS)
def test_a_report_is_read_whatever_is_in_it(said: dict[str, Any]) -> None:
    try:
        raw = orjson.dumps(said)
    except TypeError:  # surrogates, or too large
        return
    try:
        found = rspamd.read(raw)
    except Down:
        return
    assert orjson.loads(orjson.dumps(found.stored())) == found.stored()
    assert len(found.symbols) <= MOST
    assert all(len(each.name) <= 200 for each in found.symbols)


@given(some.text())
def test_no_answer_of_a_virus_scanner_breaks_us(text: str) -> None:
    with contextlib.suppress(Down, TooLarge):
        assert clamd.read(text) is None


@pytest.mark.parametrize(
    ("answer", "virus"),
    [
        ("stream: OK", None),
        ("stream: Eicar.Test FOUND", "Eicar.Test"),
        ("stream: Two Words.UNOFFICIAL FOUND", "Two Words.UNOFFICIAL"),
        ("stream: odd\r\nname FOUND", "odd  name"),
    ],
)
def test_a_virus_has_a_name(answer: str, virus: str | None) -> None:
    assert clamd.read(answer) == virus


async def test_a_body_is_the_message_from_wherever_it_comes(tmp_path: Path) -> None:
    raw = bytes(range(256)) * 3000
    (tmp_path / "raw").write_bytes(raw)
    for source in (raw, tmp_path / "raw"):
        pieces = [piece async for piece in body_of(source, len(raw)).pieces()]
        assert b"".join(pieces) == raw
        assert max(map(len, pieces)) <= STEP
