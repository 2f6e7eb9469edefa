"""Mailbox commands and tests: fileinto, copy, mailbox, special-use and fcc.

RFC 5228, RFC 3894, RFC 5490, RFC 8579 and RFC 8580.
"""

from mail.mailboxes.paths import canonical_path, validate_path
from mail.sieve.actions import FccCopy, FileInto
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)
from mail.sieve.extensions.core_commands import strings_without_variables
from mail.sieve.extensions.imap4flags import FLAGS_OPTION, flags_to_store
from models.errors import InvalidInput

SPECIAL_USE_OPTION = TagOption("specialuse", ArgumentType.STRING, extension="special-use")
CREATE_OPTION = TagOption("create", extension="mailbox")
FCC_OPTIONS = (  # how an action that sends stores its copy (RFC 8580)
    TagOption("fcc", ArgumentType.STRING, extension="fcc"),
    TagOption("flags", ArgumentType.STRINGS, extension=("fcc", "imap4flags")),
    TagOption("create", extension=("fcc", "mailbox")),
    TagOption("specialuse", ArgumentType.STRING, extension=("fcc", "special-use")),
)


def _execute_fileinto(run: ScriptRun, call: SieveCall) -> None:
    action = FileInto(
        mailbox_argument(run, call, "mailbox"),
        flags_to_store(run, call),
        create_mailbox=call.has_argument("create"),
        keeps_implicit_keep=call.has_argument("copy"),
        special_use=_special_use_argument(run, call),
        edit_count=len(run.edits),
    )
    run.add_trace_step(call, f"{action.mailbox} {' '.join(action.flags)}".strip())
    run.add_or_merge_action(call, action)
    run.has_implicit_keep = run.has_implicit_keep and action.keeps_implicit_keep


def fcc_copy_or_none(run: ScriptRun, call: SieveCall) -> FccCopy | None:
    """Return where an action stores a copy of what it sends, None if it has no :fcc."""
    if not call.has_argument("fcc"):
        return None
    flags = flags_to_store(run, call) if call.has_argument("flags") else ()
    mailbox = mailbox_argument(run, call, "fcc")
    return FccCopy(mailbox, flags, call.has_argument("create"), _special_use_argument(run, call))


def mailbox_argument(run: ScriptRun, call: SieveCall, name: str) -> str:
    """Return a mailbox argument in canonical form. Raises SieveRunError if it is invalid."""
    text = run.expanded_argument_or_empty(call, name)
    run.count_steps(call, len(text) // 16)
    problem = mailbox_problem(text)
    if problem:
        raise run.error_at(call, problem)
    return canonical_path(text)


def mailbox_problem(path: str) -> str | None:
    """Return the problem with the path of a mailbox, None if it is valid."""
    try:
        validate_path(path)
    except InvalidInput as problem:
        return f'"{path[:100]}" is not a mailbox: {problem}'
    return None


def mailbox_arguments_problem(call: SieveCall) -> str | None:
    """Return the problem with the mailboxes of a call, None if nothing is.

    Strings with variables are checked at run time.
    """
    for name in ("mailbox", "fcc"):
        text = call.string_argument(name) if call.has_argument(name) else None
        if isinstance(text, str) and (problem := mailbox_problem(text)):
            return problem
    if not call.has_argument("mailbox") and not call.has_argument("fcc"):
        stray = [option.name for option in FCC_OPTIONS if call.has_argument(option.name)]
        if stray:
            return f":{stray[0]} requires :fcc."
    use = call.string_argument("specialuse")
    return (
        special_use_problem(use)
        if call.has_argument("specialuse") and isinstance(use, str)
        else None
    )


def special_use_problem(text: str) -> str | None:
    """Return the problem with a special use, None if it is valid."""
    bare = text.removeprefix("\\")
    if bare == text or not bare.isascii() or not bare.isalpha():
        return f'"{text[:100]}" is not a special use such as "\\\\Junk".'
    return None


def _special_use_argument(run: ScriptRun, call: SieveCall) -> str | None:
    if not call.has_argument("specialuse"):
        return None
    text = run.expanded_argument_or_empty(call, "specialuse")
    problem = special_use_problem(text)
    if problem:
        raise run.error_at(call, problem)
    return text


def _evaluate_mailboxexists(run: ScriptRun, call: SieveCall) -> bool:
    mailboxes, names = run.environment.mailboxes, run.strings_argument(call, "mailboxes")
    run.count_steps(call, sum(map(len, names)) // 256)
    return all(canonical_path(name) in mailboxes for name in names)


def _evaluate_specialuse_exists(run: ScriptRun, call: SieveCall) -> bool:
    paths_by_use = run.environment.special_uses
    if call.has_argument("mailbox"):
        uses = {
            special_use.lower()
            for special_use in paths_by_use.get(
                canonical_path(run.expanded_argument_or_empty(call, "mailbox")), ()
            )
        }
    else:
        uses = {use.lower() for uses in paths_by_use.values() for use in uses}
    return all(use.lower() in uses for use in run.strings_argument(call, "uses"))


def _special_uses_problem(call: SieveCall) -> str | None:
    return next(
        filter(
            None, map(special_use_problem, strings_without_variables(call.strings_argument("uses")))
        ),
        None,
    )


COMMANDS = (
    CallSignature(
        "fileinto",
        _execute_fileinto,
        (PositionalArgument("mailbox"),),
        (TagOption("copy", extension="copy"), CREATE_OPTION, FLAGS_OPTION, SPECIAL_USE_OPTION),
        extension="fileinto",
        find_problem=mailbox_arguments_problem,
    ),
)
TESTS = (
    CallSignature(
        "mailboxexists",
        _evaluate_mailboxexists,
        (PositionalArgument("mailboxes", ArgumentType.STRINGS),),
        extension="mailbox",
    ),
    CallSignature(
        "specialuse_exists",
        _evaluate_specialuse_exists,
        (
            PositionalArgument("mailbox", is_optional=True),
            PositionalArgument("uses", ArgumentType.STRINGS),
        ),
        extension="special-use",
        find_problem=_special_uses_problem,
    ),
)
