"""Runs of the Sieve scripts of the recipients of one message."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from mail import sieve
from mail.filters import script_environment
from mail.filters.script_cache import compile_script_cached
from mail.filters.script_environment import (
    ScriptAccount,
    UserScript,
)
from mail.inbound.spam_check import RecipientVerdict
from mail.runtime import inline_or_thread
from mail.sieve import (
    SieveEnvelope,
    SieveError,
    SievePlan,
    SieveRunError,
)
from models.runtime.environment import Environment

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RuleInput:
    """A message as filters and scripts see it."""

    sieve_message: sieve.SieveMessage
    envelope_sender: str
    has_spam_score: bool = False  # a spam filter has scored the message
    virus_level: int | None = None  # RFC 5235, section 3.3
    in_memory: bool = False  # small enough to run rules on the event loop


@dataclass(frozen=True, slots=True)
class PendingScript:
    """A script that will run for a recipient."""

    recipient_verdict: RecipientVerdict
    script: UserScript
    account: ScriptAccount
    receipt_digest: str
    known_duplicate_ids: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ScriptOutcome:
    """The plan of a script, or the error of a script that failed."""

    script_id: int | None
    plan: SievePlan | None = None
    error: str | None = None
    known_duplicate_ids: frozenset[str] = frozenset()


async def run_scripts(
    environment: Environment, rule_input: RuleInput, pending_scripts: Sequence[PendingScript]
) -> dict[int, ScriptOutcome]:
    """Run the scripts of several accounts and return their outcomes by account ID.

    A script that tests `duplicate` runs a second time if one of its IDs is known.
    """
    plans = await _run_all_once(environment, rule_input, pending_scripts)
    known_ids_by_receipt = {
        (
            case.recipient_verdict.recipient.user_id,
            case.receipt_digest,
        ): outcome.plan.checked_duplicate_keys
        for case in pending_scripts
        if (outcome := plans[case.recipient_verdict.recipient.user_id]).plan
        and outcome.plan.checked_duplicate_keys
    }
    if known_ids_by_receipt and (
        seen := await script_environment.load_duplicate_ids_of_other_deliveries(
            environment, known_ids_by_receipt
        )
    ):
        repeated_cases = [
            replace(case, known_duplicate_ids=frozenset(seen[key]))
            for case in pending_scripts
            if (key := case.recipient_verdict.recipient.user_id) in seen
        ]
        plans |= await _run_all_once(environment, rule_input, repeated_cases)
    return plans


async def _run_all_once(
    environment: Environment, rule_input: RuleInput, pending_scripts: Sequence[PendingScript]
) -> dict[int, ScriptOutcome]:
    """Run each script once and return the outcomes by account ID."""
    works = {
        ("script", case.recipient_verdict.recipient.user_id): partial(
            _run_script_capturing_errors, environment, rule_input, case
        )
        for case in pending_scripts
    }
    outcomes = await inline_or_thread.run_inline_or_in_thread(works, in_memory=rule_input.in_memory)
    return {user: outcome for (_, user), outcome in outcomes.items()}


def _run_script_capturing_errors(
    environment: Environment, rule_input: RuleInput, pending: PendingScript
) -> ScriptOutcome:
    """Run one script. Errors become the outcome; they don't stop the delivery."""
    script, recipient = pending.script, pending.recipient_verdict.recipient
    envelope = SieveEnvelope(rule_input.envelope_sender, recipient.address)
    around = pending.account.sieve_environment(
        script,
        environment,
        seen=pending.known_duplicate_ids,
        spam=pending.recipient_verdict.verdict.score if rule_input.has_spam_score else None,
        virus=rule_input.virus_level,
        traced=False,
    )
    try:
        plan = sieve.run_script(
            compile_script_cached(script.text), rule_input.sieve_message, envelope, around
        )
    except SieveRunError as error:
        return ScriptOutcome(script.id, error=error_text(error))
    except SieveError as error:
        return ScriptOutcome(script.id, error=str(error))
    except Exception:  # a bug in the interpreter must not block the message
        log.exception("Could not run the Sieve script", extra={"user": recipient.user_id})
        return ScriptOutcome(
            script.id,
            error="The script could not be run. The administrator finds the cause in "
            "the server log.",
        )
    return ScriptOutcome(script.id, plan, known_duplicate_ids=pending.known_duplicate_ids)


def error_text(error: SieveRunError) -> str:
    """Return the error of a script in one line, after the name of the included script."""
    return f"{error.script}: {error}" if error.script else str(error)
