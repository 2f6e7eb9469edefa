"""Compute the spam verdict of a message for a recipient.

The first line that holds decides:

| what holds                                | verdict              | reason |
|-------------------------------------------|----------------------|--------|
| a virus was found                         | spam                 | VIRUS  |
| the account's level is 100                | no spam              | LEVEL  |
| a rule about the sender                   | BLOCK: spam, ALLOW: not | RULE |
| the account's level is 0                  | spam                 | LEVEL  |
| the score is the level, or above          | spam                 | SCORE  |
| anything else                             | no spam              | SCORE  |

If several rules match, the most specific place decides: account, tags, domain, platform. Within
one place, and among tags, BLOCK has precedence over ALLOW. Rules match the
envelope sender or the From header. If DMARC failed and no ARC seal overrules that, ALLOW rules are
ignored, except for the envelope sender if SPF passed for its domain.

The points of our scanners become a score by the thresholds of the account: `score_from_scan`. A
message at or above the upper threshold is refused, unless the level is 100 or an ALLOW rule
matches. A message with a virus is refused for all recipients if the operator configures that.

Filters run after the verdict and override all but a virus and a level of 100:
`verdict_after_filter`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from mail.addresses.address_syntax import normalized_domain
from mail.mime import SpamHeaderField
from mail.spam.scan_result import ScanResult
from mail.spam.sender_rules import SenderRuleMatch
from models.spam.sender_rules import SenderAction

LEVEL_ALL_SPAM, LEVEL_NO_SPAM = 0, 100  # spam levels
FLAGGED_SCORE = 50  # score of a message that is only flagged as spam
REFUSED_SCORE = 75  # score of a message that a spam filter would refuse
DEFAULT_JUNK_POINTS, DEFAULT_REJECT_POINTS = 8.0, 15.0  # scanner points
SCORES_BY_RSPAMD_ACTION = {  # of rspamd
    "reject": REFUSED_SCORE,
    "discard": REFUSED_SCORE,
    "quarantine": REFUSED_SCORE,
    "soft reject": FLAGGED_SCORE,
    "rewrite subject": FLAGGED_SCORE,
    "greylist": FLAGGED_SCORE,
    "add header": 25,
}
SCORES_BY_DMARC_POLICY = {
    "quarantine": FLAGGED_SCORE,
    "reject": REFUSED_SCORE,
}  # applied if DMARC failed
SPAMASSASSIN_POINTS = 5.0  # default threshold of SpamAssassin

_NUMBER = r"(-?[0-9]{1,6}(?:\.[0-9]{1,9})?)"
_POINTS_AT_START = re.compile(rf"\s*\+?{_NUMBER}(?:\s*/\s*{_NUMBER})?")
_SPAMD_RESULT = re.compile(rf"[^:\[\]]*:\s*(\w+)\s*\[\s*{_NUMBER}\s*/\s*{_NUMBER}\s*\]")
_SCORE = re.compile(rf"\b(?:score|hits)\s*=\s*{_NUMBER}")
_REQUIRED = re.compile(rf"\brequired\s*=\s*{_NUMBER}")
_STARS = re.compile(r"\s*(\*+|\++)")
_YES_WORDS = ("yes", "true")


class VerdictReason(StrEnum):
    """What decided the verdict."""

    LEVEL = "LEVEL"
    RULE = "RULE"
    SCORE = "SCORE"
    FILTER = "FILTER"
    VIRUS = "VIRUS"


@dataclass(frozen=True, slots=True)
class HeaderScore:
    """The score that spam filters of other servers gave: 0 to 100."""

    value: int = 0
    source: str | None = None  # header field name in lower case; None: no score found


@dataclass(frozen=True, slots=True)
class SpamFacts:
    """The facts about a message that are the same for all recipients."""

    score: HeaderScore = HeaderScore()
    is_forged: bool = False  # DMARC failed
    spf_passed: bool = False  # for the domain of the envelope sender
    scan_result: ScanResult | None = None  # result of our scanners


@dataclass(frozen=True, slots=True)
class SpamThresholds:
    """The points of a scanner from which a recipient treats a message as spam or refuses it."""

    junk_points: float = DEFAULT_JUNK_POINTS
    reject_points: float = DEFAULT_REJECT_POINTS
    refuse_viruses: bool = True  # set by the operator


@dataclass(frozen=True, slots=True)
class SpamVerdict:
    """The spam verdict for one recipient."""

    is_spam: bool
    score: int
    reason: VerdictReason
    rule_id: int | None = None
    is_refused: bool = False  # the message must not be stored

    def allows_forwards(self, no_forward_score: int) -> bool:
        """Return True if the message is no spam and its score is below the limit for forwards."""
        return not self.is_spam and self.score < no_forward_score


def spam_facts(
    header_fields: Sequence[SpamHeaderField],
    trusted_names: Collection[str],
    envelope_sender: str = "",
    authentication: Mapping[str, object] | None = None,
    scan_result: ScanResult | None = None,
) -> SpamFacts:
    """Return the spam facts of a message that a trusted server handed over.

    `trusted_names` are names of header fields, in any case. `authentication` is the stored result
    of authentication. For other messages pass no header fields.
    """
    results = authentication or {}
    policy = SCORES_BY_DMARC_POLICY.get(str(results.get("policy")))
    domain, passed = envelope_sender.rpartition("@")[2], results.get("spf")
    vouched = bool(domain) and isinstance(passed, str) and _is_same_domain(passed, domain)
    score = header_score(header_fields, trusted_names)
    if policy is not None and (score.source is None or policy > score.value):
        score = HeaderScore(policy, "authentication-results")
    forged = results.get("dmarc") == "fail" and not results.get("sealer")
    return SpamFacts(score, forged, vouched, scan_result)


def _is_same_domain(domain: str, other_domain: str) -> bool:
    """Return True if two domains are the same after normalization."""
    return normalized_domain(domain) == normalized_domain(other_domain)


def header_score(
    header_fields: Sequence[SpamHeaderField], trusted_names: Collection[str]
) -> HeaderScore:
    """Return the highest score of the trusted header fields."""
    names = {name.lower() for name in trusted_names}
    best_score = HeaderScore()
    for field in header_fields:
        value = _SCORE_READERS[field.name](field.text) if field.name in names else None
        if value is not None and (best_score.source is None or value > best_score.value):
            best_score = HeaderScore(value, field.name)
    return best_score


def compute_verdict(
    facts: SpamFacts,
    rule_matches: Sequence[SenderRuleMatch],
    spam_level: int,
    thresholds: SpamThresholds | None = None,
) -> SpamVerdict:
    """Return the verdict for a recipient with these matching rules, level (0 to 100) and limits."""
    thresholds = thresholds or SpamThresholds()
    scan = facts.scan_result or ScanResult()
    score = max(facts.score.value, score_from_scan(scan, thresholds))
    refused = _is_refused_by_scan(scan, thresholds)
    if scan.virus_name:
        refused |= thresholds.refuse_viruses
        return SpamVerdict(
            is_spam=True, score=score, reason=VerdictReason.VIRUS, is_refused=refused
        )
    if spam_level >= LEVEL_NO_SPAM:
        return SpamVerdict(is_spam=False, score=score, reason=VerdictReason.LEVEL)
    if rule := _decisive_rule_or_none(facts, rule_matches):
        blocked = rule.action is SenderAction.BLOCK
        refused = refused and blocked
        return SpamVerdict(blocked, score, VerdictReason.RULE, rule_id=rule.id, is_refused=refused)
    if spam_level <= LEVEL_ALL_SPAM:
        return SpamVerdict(
            is_spam=True, score=score, reason=VerdictReason.LEVEL, is_refused=refused
        )
    spam = refused or score >= spam_level
    return SpamVerdict(is_spam=spam, score=score, reason=VerdictReason.SCORE, is_refused=refused)


def _is_refused_by_scan(scan_result: ScanResult, thresholds: SpamThresholds) -> bool:
    """Return True if the scan result refuses the message."""
    return scan_result.is_forced_reject or (
        scan_result.score is not None and scan_result.score >= thresholds.reject_points
    )


def score_from_scan(scan_result: ScanResult, thresholds: SpamThresholds) -> int:
    """Return scanner points as a score: FLAGGED_SCORE and REFUSED_SCORE at the thresholds.

    The score is proportional to the points between, below and above the thresholds.
    """
    points = scan_result.score or 0.0
    if scan_result.is_forced_reject:
        return REFUSED_SCORE
    if points >= thresholds.reject_points:
        return _proportional_score(points, thresholds.reject_points, REFUSED_SCORE)
    if points < thresholds.junk_points:
        return _proportional_score(points, thresholds.junk_points, FLAGGED_SCORE)
    beyond = points - thresholds.junk_points
    return FLAGGED_SCORE + _proportional_score(
        beyond, thresholds.reject_points - thresholds.junk_points, REFUSED_SCORE - FLAGGED_SCORE
    )


def verdict_after_filter(verdict: SpamVerdict, filter_spam: bool | None) -> SpamVerdict:
    """Return the verdict after a filter that sets spam or not spam; None leaves it unchanged."""
    never = verdict.reason is VerdictReason.LEVEL and not verdict.is_spam
    if filter_spam is None or never or verdict.reason is VerdictReason.VIRUS:
        return verdict
    return replace(verdict, is_spam=filter_spam, reason=VerdictReason.FILTER, rule_id=None)


def _decisive_rule_or_none(
    facts: SpamFacts, rule_matches: Sequence[SenderRuleMatch]
) -> SenderRuleMatch | None:
    """Return the rule that decides, None if there is none.

    ALLOW rules don't count for a forged From address, except by the envelope sender if SPF passed.
    """

    def is_valid(rule: SenderRuleMatch) -> bool:
        proven = not facts.is_forged or (facts.spf_passed and not rule.matches_only_header)
        return proven or rule.action is SenderAction.BLOCK

    def sort_key(rule: SenderRuleMatch) -> tuple[int, bool, int]:
        return rule.rank, rule.action is SenderAction.ALLOW, rule.id

    return min(filter(is_valid, rule_matches), key=sort_key, default=None)


def _score_of_flag(text: str) -> int:
    """Return the score of `X-Spam-Flag: Yes`."""
    return FLAGGED_SCORE if text.strip().lower().startswith(_YES_WORDS) else 0


def _proportional_score(points: float, required: float, score_at_required: int) -> int:
    """Return points as a score, where `required` points give `score_at_required`."""
    # rounding must not reach the threshold
    whole_score = int(max(score_at_required * points / required, 0) + 1e-9)
    return min(whole_score, 100)


def _score_of_stars(text: str) -> int | None:
    """Return the score of `X-Spam-Level: ****`."""
    match = _STARS.match(text)
    return _proportional_score(len(match[1]), SPAMASSASSIN_POINTS, FLAGGED_SCORE) if match else None


def _score_of_points(text: str) -> int | None:
    """Return the score of `X-Spam-Score: 7.2 / 15`."""
    match = _POINTS_AT_START.match(text)
    if match is None:
        return None
    required = float(match[2] or SPAMASSASSIN_POINTS)
    return _proportional_score(
        float(match[1]), required if required > 0 else SPAMASSASSIN_POINTS, FLAGGED_SCORE
    )


def _score_of_status(text: str) -> int:
    """Return the score of `Yes, score=7.2 required=5.0 tests=…`. The word outweighs the points."""
    points, required = _SCORE.search(text), _REQUIRED.search(text)
    needed = float(required[1]) if required else SPAMASSASSIN_POINTS
    share = (
        _proportional_score(
            float(points[1]), needed if needed > 0 else SPAMASSASSIN_POINTS, FLAGGED_SCORE
        )
        if points
        else 0
    )
    return max(share, FLAGGED_SCORE) if _score_of_flag(text) else min(share, FLAGGED_SCORE - 1)


def _score_of_spamd_result(text: str) -> int | None:
    """Return the score of `default: False [3.20 / 15.00]; …`, relative to the second number."""
    match = _SPAMD_RESULT.match(text)
    if match is None:
        return None
    needed = float(match[3])
    return max(
        _proportional_score(float(match[2]), needed, REFUSED_SCORE) if needed > 0 else 0,
        _score_of_flag(match[1]),
    )


_SCORE_READERS: Mapping[str, Callable[[str], int | None]] = {
    "x-rspamd-action": lambda text: SCORES_BY_RSPAMD_ACTION.get(" ".join(text.lower().split()), 0),
    "x-spam": _score_of_flag,
    "x-spam-flag": _score_of_flag,
    "x-spam-level": _score_of_stars,
    "x-spam-score": _score_of_points,
    "x-spam-status": _score_of_status,
    "x-spamd-result": _score_of_spamd_result,
}
