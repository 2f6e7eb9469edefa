"""The commands `reject` and `ereject` (RFC 5429)."""

from mail.sieve.actions import Reject
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import Call, Given, Signature


def _reject(run: Run, call: Call) -> None:
    reason = run.text(call, "reason")
    run.note(call, reason)
    run.act(call, Reject(reason, extended=call.name == "ereject"))
    run.keeps = False


COMMANDS = tuple(
    Signature(name, _reject, (Given("reason"),), extension=name) for name in ("reject", "ereject")
)
