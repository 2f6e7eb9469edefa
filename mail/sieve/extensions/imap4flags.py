"""The flag commands and `hasflag` (RFC 5232)."""

from mail.sieve.execution import value_matching
from mail.sieve.execution.flag_names import known, spelled
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import MATCH, Call, Given, Kind, Option, Signature
from mail.sieve.execution.string_templates import variable_name


def flags_of(run: Run, call: Call) -> tuple[str, ...]:
    """Return the flags for an action that stores: its :flags, or those set before."""
    return spelled(known(run.texts(call, "flags")) if call.has("flags") else run.flags)


def _current(run: Run, call: Call, name: str) -> tuple[str, ...]:
    """Return the flags of the variable if the command has one, else of the run."""
    return known([run.variable(name)]) if call.has("variable") else run.flags


def _store(run: Run, call: Call, name: str, flags: tuple[str, ...]) -> None:
    """Set the flags of the variable if the command has one, else of the run."""
    run.note(call, " ".join(flags))
    if call.has("variable"):
        run.set_variable(call, name, " ".join(flags))
    else:
        run.flags = flags


def _given(run: Run, call: Call) -> tuple[str, tuple[str, ...]]:
    """Return the name of the command's variable, "" if none, and its flags.

    Raises SieveRunError if the name is invalid.
    """
    name = run.text(call, "variable") if call.has("variable") else ""
    if call.has("variable"):
        try:
            name = variable_name(name, has_globals="include" in run.program.extensions)
        except ValueError as problem:
            raise run.failed(call, str(problem)) from problem
    texts = run.texts(call, "list")
    run.spend(call, sum(map(len, texts)) // 256)
    return name, known(texts)


def _setflag(run: Run, call: Call) -> None:
    name, flags = _given(run, call)
    _store(run, call, name, flags)


def _addflag(run: Run, call: Call) -> None:
    name, flags = _given(run, call)
    _store(run, call, name, known([*_current(run, call, name), *flags]))


def _removeflag(run: Run, call: Call) -> None:
    name, flags = _given(run, call)
    gone = {flag.lower() for flag in flags}
    _store(
        run,
        call,
        name,
        tuple(flag for flag in _current(run, call, name) if flag.lower() not in gone),
    )


def _hasflag(run: Run, call: Call) -> bool:
    there: list[str] = []
    if call.has("variables"):
        for name in run.texts(call, "variables"):
            there += known([run.variable(name.lower())])
    else:
        there += run.flags
    keys = run.texts(call, "list")
    if call.chosen("match", "is") in ("is", "contains", "matches"):
        keys = [word for key in keys for word in key.split()]
    return value_matching.matched(run, call, there, keys)


def _check(call: Call) -> str | None:
    if call.has("variable") and isinstance(name := call.string("variable"), str):
        try:
            variable_name(name, has_globals=True)
        except ValueError as problem:
            return str(problem)
    return None


FLAGS = Option("flags", Kind.STRINGS, extension="imap4flags")
_LIST = Given("list", Kind.STRINGS)
_VARIABLE = Given("variable", optional=True)
COMMANDS = tuple(
    Signature(name, work, (_VARIABLE, _LIST), extension="imap4flags", check=_check)
    for name, work in (("setflag", _setflag), ("addflag", _addflag), ("removeflag", _removeflag))
)
TESTS = (
    Signature(
        "hasflag",
        _hasflag,
        (Given("variables", Kind.STRINGS, optional=True), _LIST),
        MATCH,
        extension="imap4flags",
        check=value_matching.check,
    ),
)
