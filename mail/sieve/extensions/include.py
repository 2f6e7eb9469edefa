"""The commands `include`, `return` and `global` (RFC 6609)."""

from mail.sieve import limits
from mail.sieve.execution.interpreter import ReturnFromScript, ScriptRun
from mail.sieve.execution.signatures import (
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)
from mail.sieve.execution.string_templates import parse_variable_name

_MAX_NAME_LENGTH = 512


def script_key(call: SieveCall) -> tuple[str, str]:
    """Return location and name of the script that a call includes."""
    return call.chosen_tag("location", "personal"), call.chosen_tag("script", "")


def _execute_include(run: ScriptRun, call: SieveCall) -> None:
    script_name = script_key(call)
    if script_name in run.include_stack:
        raise run.error_at(call, f'The script "{script_name[1]}" includes itself.')
    if len(run.include_stack) >= limits.MAX_NESTING:
        raise run.error_at(
            call, f"Scripts can be included at most {limits.MAX_NESTING} levels deep."
        )
    if call.has_argument("once") and script_name in run.included_scripts:
        run.add_trace_step(call, f"{script_name[1]} was included before")
        return
    program = run.environment.script(*script_name)
    if program is None:
        if not call.has_argument("optional"):
            raise run.error_at(call, f'There is no valid script "{script_name[1]}".')
        run.add_trace_step(call, f"{script_name[1]} does not exist")
        return
    run.add_trace_step(call, script_name[1])
    run.run_included(script_name, program)


def _execute_return(run: ScriptRun, call: SieveCall) -> None:
    run.add_trace_step(call, "return to the including script")
    raise ReturnFromScript


def _execute_global(run: ScriptRun, call: SieveCall) -> None:
    for name in call.strings_argument("names"):
        run.global_names.add(str(name).lower())


def _script_name_problem(call: SieveCall) -> str | None:
    name = call.chosen_tag("script", "")
    odd = not name.isprintable() or "/" in name or len(name) > _MAX_NAME_LENGTH
    return f'"{name[:100]}" is not a script name.' if odd or not name else None


def _global_names_problem(call: SieveCall) -> str | None:
    try:
        for name in call.strings_argument("names"):
            parse_variable_name(str(name), allow_globals=False)
    except ValueError as problem:
        return str(problem)
    return None


COMMANDS = (
    CallSignature(
        "include",
        _execute_include,
        (PositionalArgument("script", is_constant=True),),
        (
            TagOption("personal", group="location"),
            TagOption("global", group="location"),
            TagOption("once"),
            TagOption("optional"),
        ),
        extension="include",
        find_problem=_script_name_problem,
    ),
    CallSignature("return", _execute_return, extension="include"),
    CallSignature(
        "global",
        _execute_global,
        (PositionalArgument("names", ArgumentType.STRINGS, is_constant=True),),
        extension=("include", "variables"),
        find_problem=_global_names_problem,
    ),
)
