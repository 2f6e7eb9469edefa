"""The commands `reject` and `ereject` (RFC 5429)."""

from mail.sieve.actions import Reject
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import CallSignature, PositionalArgument, SieveCall


def _execute_reject(run: ScriptRun, call: SieveCall) -> None:
    reason = run.expanded_argument_or_empty(call, "reason")
    run.add_trace_step(call, reason)
    run.add_or_merge_action(call, Reject(reason, is_ereject=call.name == "ereject"))
    run.has_implicit_keep = False


COMMANDS = tuple(
    CallSignature(name, _execute_reject, (PositionalArgument("reason"),), extension=name)
    for name in ("reject", "ereject")
)
