"""The tests `environment` (RFC 5183), `spamtest` and `virustest` (RFC 5235)."""

from mail.sieve.execution import value_matching
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    MATCH_OPTIONS,
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)


def _evaluate_environment(run: ScriptRun, call: SieveCall) -> bool:
    value = run.environment.items.get(run.expanded_argument_or_empty(call, "item").lower())
    # An unknown item matches nothing, not even "" (section 4).
    values = [] if value is None else [value]
    return value is not None and value_matching.any_value_matches(
        run, call, values, run.strings_argument(call, "keys")
    )


def _evaluate_spamtest(run: ScriptRun, call: SieveCall) -> bool:
    percent = run.environment.spam
    if call.has_argument("percent"):
        text = "0" if percent is None else str(min(max(round(percent), 0), 100))
    else:  # from 1 to 10; 0: not scanned
        text = "0" if percent is None else str(1 + min(max(int(percent * 9 / 100), 0), 9))
    return _score_matches(run, call, text, is_known=percent is not None)


def _evaluate_virustest(run: ScriptRun, call: SieveCall) -> bool:
    level = run.environment.virus
    text = "0" if level is None else str(min(max(level, 1), 5))
    return _score_matches(run, call, text, is_known=level is not None)


def _score_matches(run: ScriptRun, call: SieveCall, text: str, *, is_known: bool) -> bool:
    counts = call.chosen_tag("match", "is") == "count"  # the number of scores: 0 or 1
    matching_texts = [text] if is_known or not counts else []
    return value_matching.any_value_matches(
        run, call, matching_texts, [run.expanded_argument_or_empty(call, "score")]
    )


_SCORE = (PositionalArgument("score"),)
TESTS = (
    CallSignature(
        "environment",
        _evaluate_environment,
        (PositionalArgument("item"), PositionalArgument("keys", ArgumentType.STRINGS)),
        MATCH_OPTIONS,
        extension="environment",
        find_problem=value_matching.match_tags_problem,
    ),
    CallSignature(
        "spamtest",
        _evaluate_spamtest,
        _SCORE,
        (*MATCH_OPTIONS, TagOption("percent", extension="spamtestplus")),
        extension="spamtest",
        find_problem=value_matching.match_tags_problem,
    ),
    CallSignature(
        "virustest",
        _evaluate_virustest,
        _SCORE,
        MATCH_OPTIONS,
        extension="virustest",
        find_problem=value_matching.match_tags_problem,
    ),
)
