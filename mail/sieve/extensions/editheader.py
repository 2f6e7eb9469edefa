"""The commands `addheader` and `deleteheader` (RFC 5293), and the edit of a header block."""

import re
from collections.abc import Iterable

from mail.mime import DecodedField
from mail.mime.header_encoding import unstructured_field
from mail.sieve import limits
from mail.sieve.actions import AddHeader, DeleteHeader, Edit
from mail.sieve.execution import value_matching
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    INDEX_OPTIONS,
    MATCH_OPTIONS,
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)
from mail.sieve.extensions.core_commands import FIELD_NAME

_FIELD = re.compile(  # the same fields as in mail.mime.header_fields, with line ends
    rb"(?:\A|(?<=[\r\n]))[!-9;-~]++[ \t]*+:[^\r\n]*+"
    rb"(?:(?:\r{0,2}\n|\r)[ \t][^\r\n]*+)*+(?:\r{0,2}\n|\r|\Z)"
)
_BLANK_LINE = re.compile(rb"(?:\A|(?>\r{0,2}\n|\r))(\r{0,2}\n|\r)\Z")  # after a complete line end
# Scripts must not forge the trace or the authentication results (sections 4 and 6).
_PROTECTED = frozenset({"received", "auto-submitted", "return-path", "authentication-results"})
_PROTECTED_PREFIXES = ("content-", "mime-version")  # a change would alter how the body is read


def _execute_addheader(run: ScriptRun, call: SieveCall) -> None:
    name = run.expanded_argument_or_empty(call, "name")
    if not FIELD_NAME.fullmatch(name) or len(name) > limits.MAX_TRACED_LENGTH:
        raise run.error_at(call, f'"{name[:100]}" is not a header field name.')
    value = " ".join(run.expanded_argument_or_empty(call, "value").split())
    if len(value) > limits.MAX_FIELD_LENGTH:
        raise run.error_at(
            call, f"A header field has at most {limits.MAX_FIELD_LENGTH} characters."
        )
    if _is_protected(name):
        run.add_trace_step(call, f"{name} can't be changed")
        return
    is_last = call.has_argument("last")
    run.add_trace_step(call, f"{name}: {value}")
    field = DecodedField(name, value, f"{name}: {value}")
    fields = [*run.all_fields(), field] if is_last else [field, *run.all_fields()]
    run.add_edit(call, AddHeader(name, value, is_last), fields)


def _execute_deleteheader(run: ScriptRun, call: SieveCall) -> None:
    name = run.expanded_argument_or_empty(call, "name")
    if not FIELD_NAME.fullmatch(name):
        raise run.error_at(call, f'"{name[:100]}" is not a header field name.')
    if _is_protected(name):
        run.add_trace_step(call, f"{name} can't be changed")
        return
    matching_values = value_matching.values_at_index(call, run.fields_named(name))
    keys = run.strings_argument(call, "keys")
    deleted = [
        field
        for field in matching_values
        if not call.has_argument("keys")
        or value_matching.any_value_matches(
            run, call, [field.value], keys, set_match_variables=False
        )
    ]
    run.add_trace_step(call, f"{len(deleted)} of {name}")
    for field in deleted:
        fields = list(run.all_fields())
        at = next(
            field_index for field_index, other_field in enumerate(fields) if other_field is field
        )
        run.add_edit(call, DeleteHeader(at), [*fields[:at], *fields[at + 1 :]])


def edit_header_block(header_block: bytes, edits: Iterable[Edit]) -> bytes:
    """Return a header block after the edits, with the blank line at its end.

    Other fields stay byte for byte. A block without a blank line gets one.
    """
    blank = _BLANK_LINE.search(header_block)
    end = blank.start(1) if blank else len(header_block)
    starts = [match.start() for match in _FIELD.finditer(header_block, 0, end)]
    before = header_block[: starts[0]] if starts else header_block[:end]
    # Damaged lines are part of the field before them.
    fields = [
        header_block[start:until] for start, until in zip(starts, [*starts[1:], end], strict=False)
    ]
    if blank is None and fields and not fields[-1].endswith((b"\r", b"\n")):
        fields[-1] += b"\r\n"
    for edit in edits:
        if isinstance(edit, DeleteHeader):
            del fields[edit.position]
        else:
            field = unstructured_field(edit.name, edit.value)
            fields.insert(len(fields) if edit.at_end else 0, field)
    return before + b"".join(fields) + (blank[1] if blank else b"\r\n")


def _is_protected(name: str) -> bool:
    return name.lower() in _PROTECTED or name.lower().startswith(_PROTECTED_PREFIXES)


def _editheader_problem(call: SieveCall) -> str | None:
    name = call.string_argument("name")
    if isinstance(name, str) and not FIELD_NAME.fullmatch(name):
        return f'"{name[:100]}" is not a header field name.'
    return value_matching.match_tags_problem(call) if call.name == "deleteheader" else None


_NAME = PositionalArgument("name")
COMMANDS = (
    CallSignature(
        "addheader",
        _execute_addheader,
        (_NAME, PositionalArgument("value")),
        (TagOption("last"),),
        extension="editheader",
        find_problem=_editheader_problem,
    ),
    CallSignature(
        "deleteheader",
        _execute_deleteheader,
        (_NAME, PositionalArgument("keys", ArgumentType.STRINGS, is_optional=True)),
        (*MATCH_OPTIONS, *(TagOption(option.name, option.value_type) for option in INDEX_OPTIONS)),
        extension="editheader",
        find_problem=_editheader_problem,
    ),
)
