"""Mailbox commands and tests: fileinto, copy, mailbox, special-use and fcc.

RFC 5228, RFC 3894, RFC 5490, RFC 8579 and RFC 8580.
"""

from mail.mailboxes.paths import checked_path, spelled
from mail.sieve.actions import Copy, FileInto
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import Call, Given, Kind, Option, Signature
from mail.sieve.extensions.core_commands import constants
from mail.sieve.extensions.imap4flags import FLAGS, flags_of
from models.errors import Invalid

SPECIAL_USE = Option("specialuse", Kind.STRING, extension="special-use")
CREATE = Option("create", extension="mailbox")
COPIED = (  # how an action that sends stores its copy (RFC 8580)
    Option("fcc", Kind.STRING, extension="fcc"),
    Option("flags", Kind.STRINGS, extension=("fcc", "imap4flags")),
    Option("create", extension=("fcc", "mailbox")),
    Option("specialuse", Kind.STRING, extension=("fcc", "special-use")),
)


def _fileinto(run: Run, call: Call) -> None:
    action = FileInto(
        mailbox_of(run, call, "mailbox"),
        flags_of(run, call),
        create=call.has("create"),
        copy=call.has("copy"),
        special_use=_use(run, call),
        edits=len(run.edits),
    )
    run.note(call, f"{action.mailbox} {' '.join(action.flags)}".strip())
    run.act(call, action)
    run.keeps = run.keeps and action.copy


def copied(run: Run, call: Call) -> Copy | None:
    """Return where an action stores a copy of what it sends, None if it has no :fcc."""
    if not call.has("fcc"):
        return None
    flags = flags_of(run, call) if call.has("flags") else ()
    mailbox = mailbox_of(run, call, "fcc")
    return Copy(mailbox, flags, call.has("create"), _use(run, call))


def mailbox_of(run: Run, call: Call, name: str) -> str:
    """Return a mailbox argument in canonical form. Raises SieveRunError if it is invalid."""
    text = run.text(call, name)
    run.spend(call, len(text) // 16)
    problem = wrong_mailbox(text)
    if problem:
        raise run.failed(call, problem)
    return spelled(text)


def wrong_mailbox(text: str) -> str | None:
    """Return the problem with the path of a mailbox, None if it is valid."""
    try:
        checked_path(text)
    except Invalid as problem:
        return f'"{text[:100]}" is no mailbox: {problem}'
    return None


def check_mailboxes(call: Call) -> str | None:
    """Return the problem with the mailboxes of a call, None if nothing is.

    Strings with variables are checked at run time.
    """
    for name in ("mailbox", "fcc"):
        text = call.string(name) if call.has(name) else None
        if isinstance(text, str) and (problem := wrong_mailbox(text)):
            return problem
    if not call.has("mailbox") and not call.has("fcc"):
        stray = [one.name for one in COPIED if call.has(one.name)]
        if stray:
            return f":{stray[0]} says of :fcc how the copy is stored"
    use = call.string("specialuse")
    return wrong_use(use) if call.has("specialuse") and isinstance(use, str) else None


def wrong_use(text: str) -> str | None:
    """Return the problem with a special use, None if it is valid."""
    bare = text.removeprefix("\\")
    if bare == text or not bare.isascii() or not bare.isalpha():
        return f'"{text[:100]}" is no special use such as "\\\\Junk"'
    return None


def _use(run: Run, call: Call) -> str | None:
    if not call.has("specialuse"):
        return None
    text = run.text(call, "specialuse")
    problem = wrong_use(text)
    if problem:
        raise run.failed(call, problem)
    return text


def _mailboxexists(run: Run, call: Call) -> bool:
    there = run.circumstances.mailboxes
    return all(spelled(name) in there for name in run.texts(call, "mailboxes"))


def _specialuse_exists(run: Run, call: Call) -> bool:
    there = run.circumstances.special_uses
    if call.has("mailbox"):
        found = {one.lower() for one in there.get(spelled(run.text(call, "mailbox")), ())}
    else:
        found = {one.lower() for uses in there.values() for one in uses}
    return all(use.lower() in found for use in run.texts(call, "uses"))


def _check_uses(call: Call) -> str | None:
    return next(filter(None, map(wrong_use, constants(call.strings("uses")))), None)


COMMANDS = (
    Signature(
        "fileinto",
        _fileinto,
        (Given("mailbox"),),
        (Option("copy", extension="copy"), CREATE, FLAGS, SPECIAL_USE),
        extension="fileinto",
        check=check_mailboxes,
    ),
)
TESTS = (
    Signature(
        "mailboxexists",
        _mailboxexists,
        (Given("mailboxes", Kind.STRINGS),),
        extension="mailbox",
    ),
    Signature(
        "specialuse_exists",
        _specialuse_exists,
        (Given("mailbox", optional=True), Given("uses", Kind.STRINGS)),
        extension="special-use",
        check=_check_uses,
    ),
)
