"""The test `ihave` and the command `error` (RFC 5463)."""

from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import Call, Given, Kind, Signature


def _ihave(run: Run, call: Call) -> bool:
    # The compiler enabled the extensions that exist.
    return set(call.strings("capabilities")) <= run.program.extensions


def _error(run: Run, call: Call) -> None:
    raise run.failed(call, f"the script says: {run.text(call, 'message')[:500]}")


COMMANDS = (Signature("error", _error, (Given("message"),), extension="ihave"),)
TESTS = (
    Signature(
        "ihave",
        _ihave,
        (Given("capabilities", Kind.STRINGS, constant=True),),
        extension="ihave",
    ),
)
