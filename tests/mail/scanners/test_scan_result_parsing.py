"""Parsing of scanner responses, and verdicts by the thresholds of a recipient."""

import contextlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.scanners import clamd, rspamd
from mail.scanners.body_stream import PIECE_SIZE, body_for_scanner
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
def test_score_is_interpolated_between_thresholds(points: float, score: int) -> None:
    assert score_from_scan(ScanResult(("rspamd",), points, 15.0), SpamThresholds()) == score


@given(points=st.floats(-1e6, 1e6), junk=st.floats(0.001, 1e4), reject_offset=st.floats(0, 1e4))
def test_score_and_verdict_change_at_thresholds(
    points: float, junk: float, reject_offset: float
) -> None:
    thresholds = SpamThresholds(junk, junk + reject_offset)
    scan = ScanResult(("rspamd",), points, 15.0)
    score = score_from_scan(scan, thresholds)
    assert 0 <= score <= 100
    assert (score >= FLAGGED_SCORE) == (points >= thresholds.junk_points)
    assert (score >= REFUSED_SCORE) == (points >= thresholds.reject_points)
    verdict = compute_verdict(SpamFacts(scan_result=scan), [], 50, thresholds)
    assert verdict.is_refused == (points >= thresholds.reject_points)
    assert verdict.is_spam == (points >= thresholds.junk_points)


def test_reject_action_of_rspamd_refuses_below_threshold() -> None:
    rejecting_result = ScanResult(("rspamd",), 1.0, 15.0, action="reject")
    assert compute_verdict(SpamFacts(scan_result=rejecting_result), [], 50).is_refused
    assert not compute_verdict(SpamFacts(scan_result=rejecting_result), [], 100).is_refused
    assert not compute_verdict(
        SpamFacts(scan_result=ScanResult(("rspamd",), 8.0, 15.0, action="add header")), [], 50
    ).is_refused
    # The thresholds of the recipient decide.
    high_result = ScanResult(("rspamd",), 20.0, 15.0, action="reject")
    assert not compute_verdict(
        SpamFacts(scan_result=high_result), [], 50, SpamThresholds(30.0, 40.0)
    ).is_refused


def test_filter_cannot_move_virus_out_of_junk() -> None:
    virus_verdict = compute_verdict(
        SpamFacts(scan_result=ScanResult(("clamd",), virus_name="X")),
        [],
        100,
        SpamThresholds(refuse_viruses=False),
    )
    assert (virus_verdict.is_spam, virus_verdict.is_refused, virus_verdict.reason) == (
        True,
        False,
        VerdictReason.VIRUS,
    )
    assert verdict_after_filter(virus_verdict, filter_spam=False) == virus_verdict


SCALARS = st.integers() | st.floats() | st.text() | st.none() | st.booleans()
JSON_VALUES = st.recursive(
    SCALARS, lambda values: st.lists(values) | st.dictionaries(st.text(), values), max_leaves=10
)
REPORTS = st.fixed_dictionaries(
    {"score": SCALARS},
    optional={
        "required_score": SCALARS,
        "action": JSON_VALUES,
        "is_skipped": JSON_VALUES,
        "symbols": JSON_VALUES
        | st.dictionaries(
            st.text(),
            st.fixed_dictionaries({"score": SCALARS}, optional={"description": JSON_VALUES}),
        ),
    },
)


@given(st.binary())
def test_random_rspamd_response_is_parsed_or_refused(raw: bytes) -> None:
    try:
        result = rspamd.parse_scan_response(raw)
    except ScannerUnavailable:
        return
    orjson.dumps(result.json_to_store())


@given(REPORTS)
def test_random_rspamd_report_is_parsed_or_refused(report: dict[str, Any]) -> None:
    try:
        raw = orjson.dumps(report)
    except TypeError:  # surrogates, or too large
        return
    try:
        result = rspamd.parse_scan_response(raw)
    except ScannerUnavailable:
        return
    assert orjson.loads(orjson.dumps(result.json_to_store())) == result.json_to_store()
    assert len(result.symbols) <= MAX_SYMBOLS
    assert all(len(symbol.name) <= 200 for symbol in result.symbols)


@given(st.text())
def test_random_clamd_response_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ScannerUnavailable, MessageTooLargeForScanner):
        assert clamd.virus_name_from_response_or_none(text) is None


@pytest.mark.parametrize(
    ("response", "virus"),
    [
        ("stream: OK", None),
        ("stream: Eicar.Test FOUND", "Eicar.Test"),
        ("stream: Two Words.UNOFFICIAL FOUND", "Two Words.UNOFFICIAL"),
        ("stream: odd\r\nname FOUND", "odd  name"),
    ],
)
def test_virus_name_is_parsed(response: str, virus: str | None) -> None:
    assert clamd.virus_name_from_response_or_none(response) == virus


async def test_scan_body_is_read_from_bytes_and_file(tmp_path: Path) -> None:
    raw = bytes(range(256)) * 3000
    (tmp_path / "raw").write_bytes(raw)
    for source in (raw, tmp_path / "raw"):
        pieces = [piece async for piece in body_for_scanner(source, len(raw)).open_pieces()]
        assert b"".join(pieces) == raw
        assert max(map(len, pieces)) <= PIECE_SIZE
