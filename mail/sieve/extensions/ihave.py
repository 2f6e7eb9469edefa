"""The test `ihave` and the command `error` (RFC 5463)."""

from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
)


def _evaluate_ihave(run: ScriptRun, call: SieveCall) -> bool:
    # The compiler enabled the extensions that exist.
    return set(call.strings_argument("capabilities")) <= run.program.extensions


def _execute_error(run: ScriptRun, call: SieveCall) -> None:
    raise run.error_at(
        call,
        f"The script reports an error: {run.expanded_argument_or_empty(call, 'message')[:500]}",
    )


COMMANDS = (
    CallSignature("error", _execute_error, (PositionalArgument("message"),), extension="ihave"),
)
TESTS = (
    CallSignature(
        "ihave",
        _evaluate_ihave,
        (PositionalArgument("capabilities", ArgumentType.STRINGS, is_constant=True),),
        extension="ihave",
    ),
)
