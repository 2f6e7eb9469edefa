"""The commands and tests of RFC 5228, with `envelope` and without `fileinto`."""

import re
from collections.abc import Iterable, Sequence

from mail.addresses.address_syntax import checked
from mail.mime import MailAddress, addresses, encoded_words
from mail.sieve.actions import Discard, Keep, Redirect
from mail.sieve.execution import comparators, value_matching
from mail.sieve.execution.interpreter import Run, Stop
from mail.sieve.execution.signatures import (
    ADDRESS_PART,
    INDEX,
    MATCH,
    Call,
    Given,
    Kind,
    Option,
    Signature,
    Tests,
)
from mail.sieve.execution.string_templates import String
from mail.sieve.extensions.imap4flags import FLAGS, flags_of
from mail.sieve.extensions.mime import ASPECTS, MIME, aspects_of, check_mime, fields_of
from models.errors import Invalid

FIELD_NAME = re.compile(r"[!-9;-~]+", re.ASCII)
_WITH_ADDRESSES = frozenset(
    """
    apparently-to bcc cc delivered-to disposition-notification-to envelope-to errors-to from
    mail-followup-to mail-reply-to reply-to resent-bcc resent-cc resent-from resent-reply-to
    resent-sender resent-to return-path return-receipt-to sender to x-original-to
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
_PARTS_OF_ENVELOPE = ("from", "to")
_DETAIL = "+"  # between user and detail (RFC 5233)


def _if(run: Run, call: Call) -> None:
    for nth, block in enumerate(call.blocks):
        if nth == len(call.tests) or run.test(call.tests[nth]):
            run.execute(block)
            return


def _nothing(_run: Run, _call: Call) -> None:
    return


def _stop(run: Run, call: Call) -> None:
    run.note(call, "the end")
    raise Stop


def _keep(run: Run, call: Call) -> None:
    flags = flags_of(run, call)
    run.note(call, f"inbox {' '.join(flags)}".strip())
    run.act(call, Keep(flags, edits=len(run.edits)))
    run.keeps = False


def _discard(run: Run, call: Call) -> None:
    run.note(call, "no implicit keep")
    run.act(call, Discard())
    run.keeps = False


def _redirect(run: Run, call: Call) -> None:
    copy = call.has("copy")
    text = run.text(call, "address")
    problem = wrong_address(text)
    if problem:
        raise run.failed(call, problem)
    run.note(call, text)
    run.act(call, Redirect(text, copy, len(run.edits)))
    run.keeps = run.keeps and copy


def _true(_run: Run, _call: Call) -> bool:
    return True


def _false(_run: Run, _call: Call) -> bool:
    return False


def _not(run: Run, call: Call) -> bool:
    return not run.test(call.tests[0])


def _allof(run: Run, call: Call) -> bool:
    return all(run.test(one) for one in call.tests)


def _anyof(run: Run, call: Call) -> bool:
    return any(run.test(one) for one in call.tests)


def _exists(run: Run, call: Call) -> bool:
    return all(fields_of(run, call, name) for name in run.texts(call, "names"))


def _size(run: Run, call: Call) -> bool:
    limit = call.number("limit")
    over = call.chosen("relation", "over") == "over"
    return run.message.size > limit if over else run.message.size < limit


def _header(run: Run, call: Call) -> bool:
    names = run.texts(call, "names")
    if call.has("mime") or call.has("index"):
        found = [
            value
            for name in names
            for one in value_matching.indexed(call, fields_of(run, call, name))
            for value in aspects_of(run, call, one)
        ]
    else:
        found = [value for name in names for value in run.said(name)]
    return value_matching.matched(run, call, found, run.texts(call, "keys"))


def _address(run: Run, call: Call) -> bool:
    found: list[str] = []
    for name in run.texts(call, "names"):
        if name.lower() not in _WITH_ADDRESSES:
            raise run.failed(call, f'"{name}" is no field with addresses')
        for field in value_matching.indexed(call, fields_of(run, call, name)):
            run.spend(call, comparators.cost(len(field.raw), 16))
            found += _addressed(run, field.raw)
    part = call.chosen("part", "all")
    return value_matching.matched(run, call, parts_of(found, part), run.texts(call, "keys"))


def _addressed(run: Run, raw: str) -> Sequence[str]:
    """Return the addresses of a raw field. Each field is parsed once per run."""
    found = run.addressed.get(raw)
    if found is None:
        found = [one.address for one in addresses_of(raw) if one.address]
        run.addressed[raw] = found
    return found


def _envelope(run: Run, call: Call) -> bool:
    found: list[str] = []
    part = call.chosen("part", "all")
    for name in run.texts(call, "parts"):
        if name.lower() not in _PARTS_OF_ENVELOPE:
            raise run.failed(call, f'"{name}" is no part of an envelope')
        is_sender = name.lower() == "from"
        text = run.envelope.sender if is_sender else run.envelope.recipient
        found += parts_of([text], part) if text else [""]
    return value_matching.matched(run, call, found, run.texts(call, "keys"))


def addresses_of(raw: str) -> list[MailAddress]:
    """Return the addresses of a raw header field."""
    return addresses(encoded_words.unfolded(raw.partition(":")[2]))


def parts_of(found: Iterable[str], part: str) -> list[str]:
    """Return a part of each address that has it (RFC 5228, section 2.7.4; RFC 5233)."""
    if part == "all":
        return list(found)
    parts: list[str] = []
    for address in found:
        local, at, domain = address.rpartition("@")
        if not at:
            local, domain = address, ""
        user, divider, detail = local.partition(_DETAIL)
        if part != "detail" or divider:
            one = {"localpart": local, "domain": domain, "user": user, "detail": detail}[part]
            parts.append(one)
    return parts


def wrong_address(text: str) -> str | None:
    """Return the problem with the address of a recipient, None if it is valid."""
    try:
        checked(text)
    except Invalid:
        return f'"{text[:100]}" is no mail address'
    return None if text == text.strip() else "blanks stand around an address"


def constants(strings: Sequence[String]) -> Iterable[str]:
    """Yield the strings that contain no variables."""
    return (one for one in strings if isinstance(one, str))


def _check_names(call: Call) -> str | None:
    for name in constants(call.strings("names")):
        if not FIELD_NAME.fullmatch(name):
            return f'"{name[:100]}" is no name of a field'
        if call.name == "address" and name.lower() not in _WITH_ADDRESSES:
            return f'"{name[:100]}" is no field with addresses'
    return check_mime(call) or value_matching.check(call)


def _check_envelope(call: Call) -> str | None:
    for name in constants(call.strings("parts")):
        if name.lower() not in _PARTS_OF_ENVELOPE:
            return f'"{name[:100]}" is no part of an envelope: there are "from" and "to"'
    return value_matching.check(call)


def _check_redirect(call: Call) -> str | None:
    address = call.string("address")
    return wrong_address(address) if isinstance(address, str) else None


def _check_size(call: Call) -> str | None:
    return None if call.has("relation") else ":over or :under is missing"


_NAMES = Given("names", Kind.STRINGS)
_KEYS = Given("keys", Kind.STRINGS)
COMMANDS = (
    Signature("if", _if, tests=Tests.ONE, block=True),
    Signature("stop", _stop),
    Signature("require", _nothing, given=(Given("capabilities", Kind.STRINGS, constant=True),)),
    Signature("keep", _keep, options=(FLAGS,)),
    Signature("discard", _discard),
    Signature(
        "redirect",
        _redirect,
        (Given("address"),),
        (Option("copy", extension="copy"),),
        check=_check_redirect,
    ),
)
TESTS = (
    Signature("true", _true),
    Signature("false", _false),
    Signature("not", _not, tests=Tests.ONE),
    Signature("allof", _allof, tests=Tests.MANY),
    Signature("anyof", _anyof, tests=Tests.MANY),
    Signature("exists", _exists, (_NAMES,), MIME, check=_check_names),
    Signature(
        "size",
        _size,
        (Given("limit", Kind.NUMBER),),
        (Option("over", group="relation"), Option("under", group="relation")),
        check=_check_size,
    ),
    Signature(
        "header", _header, (_NAMES, _KEYS), (*MATCH, *INDEX, *MIME, *ASPECTS), check=_check_names
    ),
    Signature(
        "address",
        _address,
        (_NAMES, _KEYS),
        (*MATCH, *INDEX, *ADDRESS_PART, *MIME),
        check=_check_names,
    ),
    Signature(
        "envelope",
        _envelope,
        (Given("parts", Kind.STRINGS), _KEYS),
        (*MATCH, *ADDRESS_PART),
        extension="envelope",
        check=_check_envelope,
    ),
)
