"""The flag commands and `hasflag` (RFC 5232)."""

from mail.sieve.execution import value_matching
from mail.sieve.execution.flag_names import canonical_flags, parse_flags
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    MATCH_OPTIONS,
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)
from mail.sieve.execution.string_templates import parse_variable_name


def flags_to_store(run: ScriptRun, call: SieveCall) -> tuple[str, ...]:
    """Return the flags for an action that stores: its :flags, or those set before."""
    return canonical_flags(
        parse_flags(run.strings_argument(call, "flags"))
        if call.has_argument("flags")
        else run.flags
    )


def _variable_or_run_flags(run: ScriptRun, call: SieveCall, variable: str) -> tuple[str, ...]:
    """Return the flags of the variable if the command has one, else of the run."""
    return (
        parse_flags([run.variable_value_or_empty(variable)])
        if call.has_argument("variable")
        else run.flags
    )


def _set_variable_or_run_flags(
    run: ScriptRun, call: SieveCall, variable: str, flags: tuple[str, ...]
) -> None:
    """Set the flags of the variable if the command has one, else of the run."""
    run.add_trace_step(call, " ".join(flags))
    if call.has_argument("variable"):
        run.set_variable(call, variable, " ".join(flags))
    else:
        run.flags = flags


def _variable_name_and_listed_flags(run: ScriptRun, call: SieveCall) -> tuple[str, tuple[str, ...]]:
    """Return the name of the command's variable, "" if none, and its flags.

    Raises SieveRunError if the name is invalid.
    """
    name = run.expanded_argument_or_empty(call, "variable") if call.has_argument("variable") else ""
    if call.has_argument("variable"):
        try:
            name = parse_variable_name(name, allow_globals="include" in run.program.extensions)
        except ValueError as problem:
            raise run.error_at(call, str(problem)) from problem
    texts = run.strings_argument(call, "list")
    run.count_steps(call, sum(map(len, texts)) // 256)
    return name, parse_flags(texts)


def _execute_setflag(run: ScriptRun, call: SieveCall) -> None:
    name, flags = _variable_name_and_listed_flags(run, call)
    _set_variable_or_run_flags(run, call, name, flags)


def _execute_addflag(run: ScriptRun, call: SieveCall) -> None:
    name, flags = _variable_name_and_listed_flags(run, call)
    _set_variable_or_run_flags(
        run, call, name, parse_flags([*_variable_or_run_flags(run, call, name), *flags])
    )


def _execute_removeflag(run: ScriptRun, call: SieveCall) -> None:
    name, flags = _variable_name_and_listed_flags(run, call)
    removed_flags = {flag.lower() for flag in flags}
    _set_variable_or_run_flags(
        run,
        call,
        name,
        tuple(
            flag
            for flag in _variable_or_run_flags(run, call, name)
            if flag.lower() not in removed_flags
        ),
    )


def _evaluate_hasflag(run: ScriptRun, call: SieveCall) -> bool:
    flags: list[str] = []
    if call.has_argument("variables"):
        for name in run.strings_argument(call, "variables"):
            flags += parse_flags([run.variable_value_or_empty(name.lower())])
    else:
        flags += run.flags
    keys = run.strings_argument(call, "list")
    if call.chosen_tag("match", "is") in ("is", "contains", "matches"):
        keys = [word for key in keys for word in key.split()]
    return value_matching.any_value_matches(run, call, flags, keys)


def _variable_problem(call: SieveCall) -> str | None:
    if call.has_argument("variable") and isinstance(name := call.string_argument("variable"), str):
        try:
            parse_variable_name(name, allow_globals=True)
        except ValueError as problem:
            return str(problem)
    return None


FLAGS_OPTION = TagOption("flags", ArgumentType.STRINGS, extension="imap4flags")
_LIST = PositionalArgument("list", ArgumentType.STRINGS)
_VARIABLE = PositionalArgument("variable", is_optional=True)
COMMANDS = tuple(
    CallSignature(
        name, work, (_VARIABLE, _LIST), extension="imap4flags", find_problem=_variable_problem
    )
    for name, work in (
        ("setflag", _execute_setflag),
        ("addflag", _execute_addflag),
        ("removeflag", _execute_removeflag),
    )
)
TESTS = (
    CallSignature(
        "hasflag",
        _evaluate_hasflag,
        (PositionalArgument("variables", ArgumentType.STRINGS, is_optional=True), _LIST),
        MATCH_OPTIONS,
        extension="imap4flags",
        find_problem=value_matching.match_tags_problem,
    ),
)
