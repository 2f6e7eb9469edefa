"""The test `body` (RFC 5173)."""

import re
from collections.abc import Iterable

from mail.sieve.execution import comparators, value_matching
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import MATCH, Call, Given, Kind, Option, Signature

_TYPE = re.compile(r"(?:[^\s/]+(?:/[^\s/]+)?)?")


def _body(run: Run, call: Call) -> bool:
    keys = run.texts(call, "keys")
    found: Iterable[str]
    transform = call.chosen("transform", "text")
    if transform == "raw":
        run.spend(call, comparators.cost(run.message.size))
        found = [run.message.raw_body()]
    elif transform == "content":
        kinds = [kind.lower() for kind in run.texts(call, "content")]
        run.spend(call, comparators.cost(run.message.size))
        found = run.message.contents([kind for kind in kinds if _TYPE.fullmatch(kind)])
    else:
        found = run.message.texts
    # Section 6: wildcards of `body` don't set the match variables.
    return value_matching.matched(run, call, found, keys, sets=False)


TESTS = (
    Signature(
        "body",
        _body,
        (Given("keys", Kind.STRINGS),),
        (
            *MATCH,
            Option("raw", group="transform"),
            Option("text", group="transform"),
            Option("content", Kind.STRINGS, group="transform"),
        ),
        extension="body",
        check=value_matching.check,
    ),
)
