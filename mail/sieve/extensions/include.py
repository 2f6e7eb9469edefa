"""The commands `include`, `return` and `global` (RFC 6609)."""

from mail.sieve import limits
from mail.sieve.execution.interpreter import Return, Run
from mail.sieve.execution.signatures import Call, Given, Kind, Option, Signature
from mail.sieve.execution.string_templates import variable_name

_LONGEST_NAME = 512


def include_of(call: Call) -> tuple[str, str]:
    """Return location and name of the script that a call includes."""
    return call.chosen("location", "personal"), call.chosen("script", "")


def _include(run: Run, call: Call) -> None:
    which = include_of(call)
    if which in run.within:
        raise run.failed(call, f'"{which[1]}" includes itself')
    if len(run.within) >= limits.NESTING:
        raise run.failed(call, f"at most {limits.NESTING} scripts in each other")
    if call.has("once") and which in run.included:
        run.note(call, f"{which[1]} was there")
        return
    program = run.circumstances.script(*which)
    if program is None:
        if not call.has("optional"):
            raise run.failed(call, f'there is no script "{which[1]}" that compiles')
        run.note(call, f"{which[1]} is not there")
        return
    run.note(call, which[1])
    run.include(which, program)


def _return(run: Run, call: Call) -> None:
    run.note(call, "to where it was included")
    raise Return


def _global(run: Run, call: Call) -> None:
    for name in call.strings("names"):
        run.global_names.add(str(name).lower())


def _check_name(call: Call) -> str | None:
    name = call.chosen("script", "")
    odd = not name.isprintable() or "/" in name or len(name) > _LONGEST_NAME
    return f'"{name[:100]}" is no name of a script' if odd or not name else None


def _check_global(call: Call) -> str | None:
    try:
        for name in call.strings("names"):
            variable_name(str(name), has_globals=False)
    except ValueError as problem:
        return str(problem)
    return None


COMMANDS = (
    Signature(
        "include",
        _include,
        (Given("script", constant=True),),
        (
            Option("personal", group="location"),
            Option("global", group="location"),
            Option("once"),
            Option("optional"),
        ),
        extension="include",
        check=_check_name,
    ),
    Signature("return", _return, extension="include"),
    Signature(
        "global",
        _global,
        (Given("names", Kind.STRINGS, constant=True),),
        extension=("include", "variables"),
        check=_check_global,
    ),
)
