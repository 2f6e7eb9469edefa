"""The commands `addheader` and `deleteheader` (RFC 5293), and the edit of a header block."""

import re
from collections.abc import Iterable

from mail.mime import Header
from mail.mime.header_encoding import unstructured
from mail.sieve import limits
from mail.sieve.actions import AddHeader, DeleteHeader, Edit
from mail.sieve.execution import value_matching
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import INDEX, MATCH, Call, Given, Kind, Option, Signature
from mail.sieve.extensions.core_commands import FIELD_NAME

_FIELD = re.compile(  # the same fields as in mail.mime.header_fields, with line ends
    rb"(?:\A|(?<=[\r\n]))[!-9;-~]++[ \t]*+:[^\r\n]*+"
    rb"(?:(?:\r{0,2}\n|\r)[ \t][^\r\n]*+)*+(?:\r{0,2}\n|\r|\Z)"
)
_BLANK_LINE = re.compile(rb"(?:\A|(?>\r{0,2}\n|\r))(\r{0,2}\n|\r)\Z")  # after a complete line end
# Scripts must not forge the trace or the authentication results (sections 4 and 6).
_PROTECTED = frozenset({"received", "auto-submitted", "return-path", "authentication-results"})
_TYPED = ("content-", "mime-version")  # a change would alter how the body is read


def _addheader(run: Run, call: Call) -> None:
    name = run.text(call, "name")
    if not FIELD_NAME.fullmatch(name) or len(name) > limits.TRACED:
        raise run.failed(call, f'"{name[:100]}" is no name of a field')
    value = " ".join(run.text(call, "value").split())
    if len(value) > limits.FIELD:
        raise run.failed(call, f"a field has at most {limits.FIELD} characters")
    if _is_protected(name):
        run.note(call, f"{name} stays as it is")
        return
    is_last = call.has("last")
    run.note(call, f"{name}: {value}")
    field = Header(name, value, f"{name}: {value}")
    fields = [*run.all_fields(), field] if is_last else [field, *run.all_fields()]
    run.edit(call, AddHeader(name, value, is_last), fields)


def _deleteheader(run: Run, call: Call) -> None:
    name = run.text(call, "name")
    if not FIELD_NAME.fullmatch(name):
        raise run.failed(call, f'"{name[:100]}" is no name of a field')
    if _is_protected(name):
        run.note(call, f"{name} stays as it is")
        return
    wanted = value_matching.indexed(call, run.headers(name))
    keys = run.texts(call, "keys")
    gone = [
        field
        for field in wanted
        if not call.has("keys")
        or value_matching.matched(run, call, [field.value], keys, sets=False)
    ]
    run.note(call, f"{len(gone)} of {name}")
    for field in gone:
        fields = list(run.all_fields())
        at = next(place for place, one in enumerate(fields) if one is field)
        run.edit(call, DeleteHeader(at), [*fields[:at], *fields[at + 1 :]])


def edited(header: bytes, edits: Iterable[Edit]) -> bytes:
    """Return a header block after the edits, with the blank line at its end.

    Other fields stay byte for byte. A block without a blank line gets one.
    """
    blank = _BLANK_LINE.search(header)
    end = blank.start(1) if blank else len(header)
    starts = [found.start() for found in _FIELD.finditer(header, 0, end)]
    before = header[: starts[0]] if starts else header[:end]
    # Damaged lines are part of the field before them.
    fields = [header[start:until] for start, until in zip(starts, [*starts[1:], end], strict=False)]
    if blank is None and fields and not fields[-1].endswith((b"\r", b"\n")):
        fields[-1] += b"\r\n"
    for edit in edits:
        if isinstance(edit, DeleteHeader):
            del fields[edit.position]
        else:
            field = unstructured(edit.name, edit.value)
            fields.insert(len(fields) if edit.last else 0, field)
    return before + b"".join(fields) + (blank[1] if blank else b"\r\n")


def _is_protected(name: str) -> bool:
    return name.lower() in _PROTECTED or name.lower().startswith(_TYPED)


def _check(call: Call) -> str | None:
    name = call.string("name")
    if isinstance(name, str) and not FIELD_NAME.fullmatch(name):
        return f'"{name[:100]}" is no name of a field'
    return value_matching.check(call) if call.name == "deleteheader" else None


_NAME = Given("name")
COMMANDS = (
    Signature(
        "addheader",
        _addheader,
        (_NAME, Given("value")),
        (Option("last"),),
        extension="editheader",
        check=_check,
    ),
    Signature(
        "deleteheader",
        _deleteheader,
        (_NAME, Given("keys", Kind.STRINGS, optional=True)),
        (*MATCH, *(Option(one.name, one.value) for one in INDEX)),
        extension="editheader",
        check=_check,
    ),
)
