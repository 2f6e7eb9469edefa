"""The test `hasattachment`, an extension of this server."""

from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import CallSignature, SieveCall


def _evaluate_hasattachment(run: ScriptRun, _call: SieveCall) -> bool:
    return run.message.has_attachment


TESTS = (
    CallSignature("hasattachment", _evaluate_hasattachment, extension="vnd.merganser.attachments"),
)
