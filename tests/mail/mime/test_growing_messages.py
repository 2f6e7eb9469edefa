"""The time to parse a message grows with its size, whatever the size consists of."""

from collections.abc import Callable

import pytest

from mail.mime import (
    ParsedPart,
    body_html_parts,
    body_text,
    calendar_parts,
    decoded_fields,
    facts_from_message_bytes,
    file_parts,
    find_part,
    imap_bodystructure,
    imap_envelope,
    json_rows_from_tree,
    part_text,
    shown_body_parts,
    tree_from_json_rows,
    walk_parts,
)
from mail.mime.authentication_results import method_verdict_or_none
from mail.storage.blobs.message_layout import EncodedBody, parse_layout, split_message
from tests.support.growth import assert_grows_with_size
from tests.support.mail.growing_messages import GROWING_MESSAGES, text_files
from tests.support.run_scope import RUNS_ALL_TESTS

LARGE_COUNT = 16_000 if RUNS_ALL_TESTS else 4_000
BASE64_BODY = b"QUJD" * 400


def find_each_part(tree: ParsedPart) -> None:
    for part in walk_parts(tree):
        assert find_part(tree, part.section)


def read_all_of_message(raw: bytes, tree: ParsedPart) -> None:
    find_each_part(tree)
    body_text(raw, tree)
    body_html_parts(raw, tree)
    decoded_fields(raw, tree)
    imap_envelope(raw, tree)
    imap_bodystructure(raw, tree)
    calendar_parts(tree)
    list(file_parts(tree))
    for part in shown_body_parts(tree):
        part_text(raw, part)


@pytest.mark.parametrize("shape", GROWING_MESSAGES)
def test_time_to_parse_message_grows_with_its_size(shape: str) -> None:
    def parse_job(count: int) -> Callable[[], object]:
        raw = GROWING_MESSAGES[shape](count)
        return lambda: facts_from_message_bytes(raw)

    assert_grows_with_size(parse_job, large_size=LARGE_COUNT)


@pytest.mark.parametrize("shape", GROWING_MESSAGES)
def test_time_to_read_parsed_message_grows_with_its_size(shape: str) -> None:
    def read_job(count: int) -> Callable[[], object]:
        raw = GROWING_MESSAGES[shape](count)
        rows = json_rows_from_tree(facts_from_message_bytes(raw).structure)
        return lambda: read_all_of_message(raw, tree_from_json_rows(rows))

    assert_grows_with_size(read_job, large_size=LARGE_COUNT)


def test_time_to_find_each_part_grows_with_number_of_parts() -> None:
    def find_job(count: int) -> Callable[[], object]:
        rows = json_rows_from_tree(facts_from_message_bytes(text_files(count)).structure)
        return lambda: find_each_part(tree_from_json_rows(rows))

    assert_grows_with_size(find_job, large_size=LARGE_COUNT)


def test_time_to_read_verdicts_does_not_grow_with_square_of_blanks() -> None:
    def verdict_job(count: int) -> Callable[[], object]:
        text = "mx.example.org; dkim" + " " * count + "x=pass"
        return lambda: method_verdict_or_none(text, "dkim")

    assert_grows_with_size(verdict_job, large_size=8_000)


def test_time_to_read_spans_grows_with_number_of_blobs() -> None:
    def slice_job(count: int) -> Callable[[], object]:
        size = len(BASE64_BODY)
        raw = (BASE64_BODY + b"\r\n--b\r\n\r\n") * count
        step = len(raw) // count
        starts = range(0, len(raw), step)
        bodies = [EncodedBody(start, start + size, "base64") for start in starts]
        layout = parse_layout(split_message(raw, bodies).layout_bytes)
        assert len(layout.blob_spans) == count
        return lambda: [layout.slice(start + size, start + step) for start in starts]

    assert_grows_with_size(slice_job, large_size=LARGE_COUNT)
