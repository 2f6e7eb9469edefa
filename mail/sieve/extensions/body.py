"""The test `body` (RFC 5173)."""

import re
from collections.abc import Iterable

from mail.sieve.execution import comparators, value_matching
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    MATCH_OPTIONS,
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)

_CONTENT_TYPE = re.compile(r"(?:[^\s/]+(?:/[^\s/]+)?)?")


def _evaluate_body(run: ScriptRun, call: SieveCall) -> bool:
    keys = run.strings_argument(call, "keys")
    texts: Iterable[str]
    transform = call.chosen_tag("transform", "text")
    if transform == "raw":
        run.count_steps(call, comparators.comparison_steps(run.message.size))
        texts = [run.message.raw_body()]
    elif transform == "content":
        kinds = [kind.lower() for kind in run.strings_argument(call, "content")]
        run.count_steps(call, comparators.comparison_steps(run.message.size))
        texts = run.message.contents_of_types(
            [kind for kind in kinds if _CONTENT_TYPE.fullmatch(kind)]
        )
    else:
        texts = run.message.texts
    # Section 6: wildcards of `body` don't set the match variables.
    return value_matching.any_value_matches(run, call, texts, keys, set_match_variables=False)


TESTS = (
    CallSignature(
        "body",
        _evaluate_body,
        (PositionalArgument("keys", ArgumentType.STRINGS),),
        (
            *MATCH_OPTIONS,
            TagOption("raw", group="transform"),
            TagOption("text", group="transform"),
            TagOption("content", ArgumentType.STRINGS, group="transform"),
        ),
        extension="body",
        find_problem=value_matching.match_tags_problem,
    ),
)
