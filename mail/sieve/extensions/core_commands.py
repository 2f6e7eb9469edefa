"""The commands and tests of RFC 5228, with `envelope` and without `fileinto`."""

import re
from collections.abc import Iterable, Sequence

from mail.addresses.address_syntax import normalize_and_validate_address
from mail.mime import ParsedAddress, encoded_words, parse_address_list
from mail.sieve.actions import Discard, Keep, Redirect
from mail.sieve.execution import comparators, value_matching
from mail.sieve.execution.interpreter import ScriptRun, StopScript
from mail.sieve.execution.signatures import (
    ADDRESS_PART_OPTIONS,
    INDEX_OPTIONS,
    MATCH_OPTIONS,
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
    TestCount,
)
from mail.sieve.execution.string_templates import SieveString
from mail.sieve.extensions.imap4flags import FLAGS_OPTION, flags_to_store
from mail.sieve.extensions.mime import (
    ASPECT_OPTIONS,
    MIME_OPTIONS,
    aspects_of_field,
    fields_of_message_or_part,
    mime_tags_problem,
)
from models.errors import InvalidInput

FIELD_NAME = re.compile(r"[!-9;-~]+", re.ASCII)
_ADDRESS_FIELDS = frozenset(
    """
    apparently-to bcc cc delivered-to disposition-notification-to envelope-to errors-to from
    mail-followup-to mail-reply-to reply-to resent-bcc resent-cc resent-from resent-reply-to
    resent-sender resent-to return-path return-receipt-to sender to x-original-to
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
_ENVELOPE_PARTS = ("from", "to")


def _execute_if(run: ScriptRun, call: SieveCall) -> None:
    for nth, block in enumerate(call.blocks):
        if nth == len(call.tests) or run.evaluate(call.tests[nth]):
            run.execute(block)
            return


def _execute_nothing(_run: ScriptRun, _call: SieveCall) -> None:
    return


def _execute_stop(run: ScriptRun, call: SieveCall) -> None:
    run.add_trace_step(call, "the end")
    raise StopScript


def _execute_keep(run: ScriptRun, call: SieveCall) -> None:
    flags = flags_to_store(run, call)
    run.add_trace_step(call, f"inbox {' '.join(flags)}".strip())
    run.add_or_merge_action(call, Keep(flags, edit_count=len(run.edits)))
    run.has_implicit_keep = False


def _execute_discard(run: ScriptRun, call: SieveCall) -> None:
    run.add_trace_step(call, "no implicit keep")
    run.add_or_merge_action(call, Discard())
    run.has_implicit_keep = False


def _execute_redirect(run: ScriptRun, call: SieveCall) -> None:
    copy = call.has_argument("copy")
    text = run.expanded_argument_or_empty(call, "address")
    problem = recipient_problem(text)
    if problem:
        raise run.error_at(call, problem)
    run.add_trace_step(call, text)
    run.add_or_merge_action(call, Redirect(text, copy, len(run.edits)))
    run.has_implicit_keep = run.has_implicit_keep and copy


def _evaluate_true(_run: ScriptRun, _call: SieveCall) -> bool:
    return True


def _evaluate_false(_run: ScriptRun, _call: SieveCall) -> bool:
    return False


def _evaluate_not(run: ScriptRun, call: SieveCall) -> bool:
    return not run.evaluate(call.tests[0])


def _evaluate_allof(run: ScriptRun, call: SieveCall) -> bool:
    return all(run.evaluate(test) for test in call.tests)


def _evaluate_anyof(run: ScriptRun, call: SieveCall) -> bool:
    return any(run.evaluate(test) for test in call.tests)


def _evaluate_exists(run: ScriptRun, call: SieveCall) -> bool:
    return all(
        fields_of_message_or_part(run, call, name) for name in run.strings_argument(call, "names")
    )


def _evaluate_size(run: ScriptRun, call: SieveCall) -> bool:
    limit = call.number_argument("limit")
    over = call.chosen_tag("relation", "over") == "over"
    return run.message.size > limit if over else run.message.size < limit


def _evaluate_header(run: ScriptRun, call: SieveCall) -> bool:
    names = run.strings_argument(call, "names")
    if call.has_argument("mime") or call.has_argument("index"):
        values = [
            value
            for name in names
            for field_value in value_matching.values_at_index(
                call, fields_of_message_or_part(run, call, name)
            )
            for value in aspects_of_field(run, call, field_value)
        ]
    else:
        values = [value for name in names for value in run.values_of_field(name)]
    return value_matching.any_value_matches(run, call, values, run.strings_argument(call, "keys"))


def _evaluate_address(run: ScriptRun, call: SieveCall) -> bool:
    addresses: list[str] = []
    for name in run.strings_argument(call, "names"):
        if name.lower() not in _ADDRESS_FIELDS:
            raise run.error_at(call, f'"{name}" is not a header field with addresses.')
        for field in value_matching.values_at_index(
            call, fields_of_message_or_part(run, call, name)
        ):
            run.count_steps(call, comparators.comparison_steps(len(field.raw), 16))
            addresses += _addresses_of_field(run, field.raw)
    part = call.chosen_tag("part", "all")
    parts = address_parts(addresses, part, run.environment.subaddress_delimiters)
    return value_matching.any_value_matches(run, call, parts, run.strings_argument(call, "keys"))


def _addresses_of_field(run: ScriptRun, raw_field: str) -> Sequence[str]:
    """Return the addresses of a raw field. Each field is parsed once per run."""
    addresses = run.addresses_by_raw_field.get(raw_field)
    if addresses is None:
        addresses = [
            address.address for address in parse_field_addresses(raw_field) if address.address
        ]
        run.addresses_by_raw_field[raw_field] = addresses
    return addresses


def _evaluate_envelope(run: ScriptRun, call: SieveCall) -> bool:
    values: list[str] = []
    part = call.chosen_tag("part", "all")
    for name in run.strings_argument(call, "parts"):
        if name.lower() not in _ENVELOPE_PARTS:
            raise run.error_at(call, f'"{name}" is not an envelope part.')
        is_sender = name.lower() == "from"
        text = run.envelope.sender if is_sender else run.envelope.recipient
        delimiters = run.environment.subaddress_delimiters
        values += address_parts([text], part, delimiters) if text else [""]
    return value_matching.any_value_matches(run, call, values, run.strings_argument(call, "keys"))


def parse_field_addresses(raw_field: str) -> list[ParsedAddress]:
    """Return the addresses of a raw header field."""
    return parse_address_list(encoded_words.unfold_and_decode_utf8(raw_field.partition(":")[2]))


def address_parts(addresses: Iterable[str], part: str, delimiters: str) -> list[str]:
    """Return a part of each address that has it (RFC 5228, section 2.7.4; RFC 5233)."""
    if part == "all":
        return list(addresses)
    parts: list[str | None] = []
    for address in addresses:
        local, at, domain = address.rpartition("@")
        if not at:
            local, domain = address, ""
        user, detail = _user_and_detail(local, delimiters)
        parts.append({"localpart": local, "domain": domain, "user": user, "detail": detail}[part])
    return [value for value in parts if value is not None]


def _user_and_detail(local_part: str, delimiters: str) -> tuple[str, str | None]:
    """Split a local part at its first delimiter; the detail is None without a delimiter."""
    for index, character in enumerate(local_part):
        if character in delimiters:
            return local_part[:index], local_part[index + 1 :]
    return local_part, None


def recipient_problem(address: str) -> str | None:
    """Return the problem with the address of a recipient, None if it is valid."""
    try:
        normalize_and_validate_address(address, allows_quotes=True)
    except InvalidInput:
        return f'"{address[:100]}" is not an email address.'
    return None if address == address.strip() else "An address must not begin or end with spaces."


def strings_without_variables(strings: Sequence[SieveString]) -> Iterable[str]:
    """Yield the strings that contain no variables."""
    return (string for string in strings if isinstance(string, str))


def _field_names_or_tags_problem(call: SieveCall) -> str | None:
    for name in strings_without_variables(call.strings_argument("names")):
        if not FIELD_NAME.fullmatch(name):
            return f'"{name[:100]}" is not a header field name.'
        if call.name == "address" and name.lower() not in _ADDRESS_FIELDS:
            return f'"{name[:100]}" is not a header field with addresses.'
    return mime_tags_problem(call) or value_matching.match_tags_problem(call)


def _envelope_problem(call: SieveCall) -> str | None:
    for name in strings_without_variables(call.strings_argument("parts")):
        if name.lower() not in _ENVELOPE_PARTS:
            return f'"{name[:100]}" is not an envelope part: use "from" or "to".'
    return value_matching.match_tags_problem(call)


def _redirect_problem(call: SieveCall) -> str | None:
    address = call.string_argument("address")
    return recipient_problem(address) if isinstance(address, str) else None


def _size_problem(call: SieveCall) -> str | None:
    return None if call.has_argument("relation") else ":over or :under is missing."


_NAMES = PositionalArgument("names", ArgumentType.STRINGS)
_KEYS = PositionalArgument("keys", ArgumentType.STRINGS)
COMMANDS = (
    CallSignature("if", _execute_if, test_count=TestCount.ONE, has_block=True),
    CallSignature("stop", _execute_stop),
    CallSignature(
        "require",
        _execute_nothing,
        positional=(PositionalArgument("capabilities", ArgumentType.STRINGS, is_constant=True),),
    ),
    CallSignature("keep", _execute_keep, options=(FLAGS_OPTION,)),
    CallSignature("discard", _execute_discard),
    CallSignature(
        "redirect",
        _execute_redirect,
        (PositionalArgument("address"),),
        (TagOption("copy", extension="copy"),),
        find_problem=_redirect_problem,
    ),
)
TESTS = (
    CallSignature("true", _evaluate_true),
    CallSignature("false", _evaluate_false),
    CallSignature("not", _evaluate_not, test_count=TestCount.ONE),
    CallSignature("allof", _evaluate_allof, test_count=TestCount.MANY),
    CallSignature("anyof", _evaluate_anyof, test_count=TestCount.MANY),
    CallSignature(
        "exists",
        _evaluate_exists,
        (_NAMES,),
        MIME_OPTIONS,
        find_problem=_field_names_or_tags_problem,
    ),
    CallSignature(
        "size",
        _evaluate_size,
        (PositionalArgument("limit", ArgumentType.NUMBER),),
        (TagOption("over", group="relation"), TagOption("under", group="relation")),
        find_problem=_size_problem,
    ),
    CallSignature(
        "header",
        _evaluate_header,
        (_NAMES, _KEYS),
        (*MATCH_OPTIONS, *INDEX_OPTIONS, *MIME_OPTIONS, *ASPECT_OPTIONS),
        find_problem=_field_names_or_tags_problem,
    ),
    CallSignature(
        "address",
        _evaluate_address,
        (_NAMES, _KEYS),
        (*MATCH_OPTIONS, *INDEX_OPTIONS, *ADDRESS_PART_OPTIONS, *MIME_OPTIONS),
        find_problem=_field_names_or_tags_problem,
    ),
    CallSignature(
        "envelope",
        _evaluate_envelope,
        (PositionalArgument("parts", ArgumentType.STRINGS), _KEYS),
        (*MATCH_OPTIONS, *ADDRESS_PART_OPTIONS),
        extension="envelope",
        find_problem=_envelope_problem,
    ),
)
