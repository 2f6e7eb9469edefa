"""The Sieve extension editheader (RFC 5293)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.mime import decoded_fields, parse_structure
from mail.sieve import (
    AddHeader,
    DeleteHeader,
    FileInto,
    Keep,
    SieveRunError,
    edit_header_block,
    limits,
)
from tests.support.mail.sieve_runs import SAMPLE_MESSAGE, action_texts, run_script

EDIT_REQUIRE = 'require ["editheader", "fileinto", "index", "variables"];'


def test_header_edits_are_visible_to_later_tests() -> None:
    plan = run_script(
        f"""{EDIT_REQUIRE} fileinto "Before";
        addheader "X-New" "gr\u00fcn"; addheader :last "X-Many" "four";
        deleteheader :index 1 "x-many"; deleteheader "subject";
        if allof (header "x-new" "gr\u00fcn", not exists "subject",
                  header :index 1 "x-many" "two", header :index 1 :last "x-many" "four") {{
            fileinto "After"; }}"""
    )
    assert plan.edits == (
        AddHeader("X-New", "gr\u00fcn"),
        AddHeader("X-Many", "four", at_end=True),
        DeleteHeader(9),
        DeleteHeader(6),
    )
    file_actions = [action for action in plan.actions if isinstance(action, FileInto)]
    assert [(action.mailbox, action.edit_count) for action in file_actions] == [
        ("Before", 0),
        ("After", 4),
    ]


def test_edits_change_only_header() -> None:
    script = (
        f'{EDIT_REQUIRE} addheader "X-New" "gr\u00fcn"; deleteheader :matches "x-many" "t*"; keep;'
    )
    plan = run_script(script)
    end = SAMPLE_MESSAGE.index(b"\n\n") + 2
    header = edit_header_block(SAMPLE_MESSAGE[:end], plan.edits)
    assert header == b"X-New: =?utf-8?B?Z3LDvG4=?=\r\n" + SAMPLE_MESSAGE[:end].replace(
        b"X-Many: two\nX-Many: three\n", b""
    )
    assert plan.actions == (Keep(edit_count=3),)
    assert edit_header_block(SAMPLE_MESSAGE[:end], []) == SAMPLE_MESSAGE[:end]
    edited = edit_header_block(b"A: b\r\n\r\n", [AddHeader("C", "d", at_end=True), DeleteHeader(0)])
    assert edited == b"C: d\r\n\r\n"


HEADER_BLOCKS = st.lists(
    st.sampled_from(
        [b"A: b", b"\n", b"\r\n", b"\r", b" c", b"\r\r\n", b"odd", b"From x", b": ", b"D:"]
    )
).map(b"".join)


@given(HEADER_BLOCKS, st.data())
def test_edit_positions_match_parsed_fields(block: bytes, data: st.DataObject) -> None:
    block = b"X: y\r\n" + block + b"\r\n\r\nbody"
    part = parse_structure(block)
    header = block[: part.body_start]
    fields_before = decoded_fields(block, part)
    position = data.draw(st.integers(0, len(fields_before) - 1))
    edited = edit_header_block(header, [DeleteHeader(position)]) + b"\r\n\r\nbody"
    remaining_keys = [
        field.name for field in fields_before[:position] + fields_before[position + 1 :]
    ]
    assert [field.name for field in decoded_fields(edited, parse_structure(edited))][
        : len(remaining_keys)
    ] == remaining_keys


@pytest.mark.parametrize("name", ["Received", "auto-submitted", "Content-Type", "MIME-Version"])
def test_protected_header_fields_are_not_edited(name: str) -> None:
    plan = run_script(f'{EDIT_REQUIRE} deleteheader "{name}"; addheader "{name}" "x";')
    assert (plan.edits, action_texts(plan)) == ((), ["keep"])


def test_added_header_value_has_no_line_break() -> None:
    plan = run_script(f'{EDIT_REQUIRE} addheader "X-A" "b\r\nX-C: d\n\nbody";')
    assert plan.edits == (AddHeader("X-A", "b X-C: d body"),)
    assert edit_header_block(b"\r\n", plan.edits) == b"X-A: b X-C: d body\r\n\r\n"
    with pytest.raises(SieveRunError, match="is not a header field name"):
        run_script(f'{EDIT_REQUIRE} set "v" "X-A: b\r\nX"; addheader "${{v}}" "c";')
    with pytest.raises(SieveRunError, match="A script can change the header at most 64 times"):
        run_script(EDIT_REQUIRE + 'addheader "X" "y";' * (limits.MAX_EDITS + 1))
