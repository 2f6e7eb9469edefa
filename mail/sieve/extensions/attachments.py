"""The test `hasattachment`, an extension of this server."""

from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import Call, Signature


def _hasattachment(run: Run, _call: Call) -> bool:
    return run.message.has_attachment


TESTS = (Signature("hasattachment", _hasattachment, extension="vnd.merganser.attachments"),)
