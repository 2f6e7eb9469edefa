"""The tests `environment` (RFC 5183), `spamtest` and `virustest` (RFC 5235)."""

from mail.sieve.execution import value_matching
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import MATCH, Call, Given, Kind, Option, Signature


def _environment(run: Run, call: Call) -> bool:
    value = run.circumstances.items.get(run.text(call, "item").lower())
    # An unknown item matches nothing, not even "" (section 4).
    found = [] if value is None else [value]
    return value is not None and value_matching.matched(run, call, found, run.texts(call, "keys"))


def _spamtest(run: Run, call: Call) -> bool:
    percent = run.circumstances.spam
    if call.has("percent"):
        text = "0" if percent is None else str(min(max(round(percent), 0), 100))
    else:  # from 1 to 10; 0: not scanned
        text = "0" if percent is None else str(1 + min(max(int(percent * 9 / 100), 0), 9))
    return _scored(run, call, text, is_known=percent is not None)


def _virustest(run: Run, call: Call) -> bool:
    level = run.circumstances.virus
    text = "0" if level is None else str(min(max(level, 1), 5))
    return _scored(run, call, text, is_known=level is not None)


def _scored(run: Run, call: Call, text: str, *, is_known: bool) -> bool:
    counts = call.chosen("match", "is") == "count"  # the number of scores: 0 or 1
    found = [text] if is_known or not counts else []
    return value_matching.matched(run, call, found, [run.text(call, "score")])


_SCORE = (Given("score"),)
TESTS = (
    Signature(
        "environment",
        _environment,
        (Given("item"), Given("keys", Kind.STRINGS)),
        MATCH,
        extension="environment",
        check=value_matching.check,
    ),
    Signature(
        "spamtest",
        _spamtest,
        _SCORE,
        (*MATCH, Option("percent", extension="spamtestplus")),
        extension="spamtest",
        check=value_matching.check,
    ),
    Signature(
        "virustest", _virustest, _SCORE, MATCH, extension="virustest", check=value_matching.check
    ),
)
