"""What scanners say is read whatever it is, and judged by the thresholds of a recipient."""

import contextlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as some

from mail.scanners import clamd, rspamd
from mail.scanners.body_stream import PIECE_SIZE, scan_body
from mail.scanners.circuit_breaker import MessageTooLargeForScanner, ScannerUnavailable
from mail.spam.scan_result import MAX_SYMBOLS, ScanResult
from mail.spam.verdict import (
    FLAGGED_SCORE,
    REFUSED_SCORE,
    SpamFacts,
    SpamThresholds,
    VerdictReason,
    compute_verdict,
    score_from_scan,
    verdict_after_filter,
)


@pytest.mark.parametrize(
    ("points", "score"),
    [(-3, 0), (0, 0), (4, 25), (7.99, 49), (8, 50), (11.5, 62), (15, 75), (20, 100), (900, 100)],
)
def test_points_are_a_score_between_the_thresholds(points: float, score: int) -> None:
    assert score_from_scan(ScanResult(("rspamd",), points, 15.0), SpamThresholds()) == score


@given(points=some.floats(-1e6, 1e6), junk=some.floats(0.001, 1e4), more=some.floats(0, 1e4))
def test_thresholds_are_marks_whatever_they_are(points: float, junk: float, more: float) -> None:
    limits = SpamThresholds(junk, junk + more)
    scan = ScanResult(("rspamd",), points, 15.0)
    score = score_from_scan(scan, limits)
    assert 0 <= score <= 100
    assert (score >= FLAGGED_SCORE) == (points >= limits.junk_points)
    assert (score >= REFUSED_SCORE) == (points >= limits.reject_points)
    verdict = compute_verdict(SpamFacts(scan_result=scan), [], 50, limits)
    assert verdict.is_refused == (points >= limits.reject_points)
    assert verdict.is_spam == (points >= limits.junk_points)


def test_a_filter_may_refuse_whatever_the_points_are() -> None:
    forced = ScanResult(("rspamd",), 1.0, 15.0, action="reject")
    assert compute_verdict(SpamFacts(scan_result=forced), [], 50).is_refused
    assert not compute_verdict(SpamFacts(scan_result=forced), [], 100).is_refused
    assert not compute_verdict(
        SpamFacts(scan_result=ScanResult(("rspamd",), 8.0, 15.0, action="add header")), [], 50
    ).is_refused
    usual = ScanResult(("rspamd",), 20.0, 15.0, action="reject")  # thresholds are the recipient's
    assert not compute_verdict(
        SpamFacts(scan_result=usual), [], 50, SpamThresholds(30.0, 40.0)
    ).is_refused


def test_no_filter_takes_a_virus_out_of_junk() -> None:
    ill = compute_verdict(
        SpamFacts(scan_result=ScanResult(("clamd",), virus_name="X")),
        [],
        100,
        SpamThresholds(refuse_viruses=False),
    )
    assert (ill.is_spam, ill.is_refused, ill.reason) == (True, False, VerdictReason.VIRUS)
    assert verdict_after_filter(ill, filter_spam=False) == ill


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
        found = rspamd.parse_response(raw)
    except ScannerUnavailable:
        return
    orjson.dumps(found.record())


@given(REPORTS)
def test_a_report_is_read_whatever_is_in_it(said: dict[str, Any]) -> None:
    try:
        raw = orjson.dumps(said)
    except TypeError:  # surrogates, or too large
        return
    try:
        found = rspamd.parse_response(raw)
    except ScannerUnavailable:
        return
    assert orjson.loads(orjson.dumps(found.record())) == found.record()
    assert len(found.symbols) <= MAX_SYMBOLS
    assert all(len(each.name) <= 200 for each in found.symbols)


@given(some.text())
def test_no_answer_of_a_virus_scanner_breaks_us(text: str) -> None:
    with contextlib.suppress(ScannerUnavailable, MessageTooLargeForScanner):
        assert clamd.parse_response(text) is None


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
    assert clamd.parse_response(answer) == virus


async def test_a_body_is_the_message_from_wherever_it_comes(tmp_path: Path) -> None:
    raw = bytes(range(256)) * 3000
    (tmp_path / "raw").write_bytes(raw)
    for source in (raw, tmp_path / "raw"):
        pieces = [piece async for piece in scan_body(source, len(raw)).open_pieces()]
        assert b"".join(pieces) == raw
        assert max(map(len, pieces)) <= PIECE_SIZE
