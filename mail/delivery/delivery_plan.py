"""Plan what the filters and the Sieve script of each recipient do with a message.

The filter result (mail/filters/filter_result.py) is the default. It applies if the script keeps the
message. Stores, redirects and discards of the script replace it:

- A spam message goes to Junk if it is kept, unless a filter says that it is not spam. A
  `fileinto` of the script overrides this.
- A message that a filter deletes is not stored if the script keeps it. Redirects of filters
  happen in any case; copies of a deleted message are not made.
- If a mailbox does not exist and must not be created, INBOX is used.
- A script that fails has no effect, and its error is shown to the user.

The number of SQL statements does not depend on the number of recipients. There is none if no
recipient has rules. mail/delivery/plan_execution.py executes the plan.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mail import sieve
from mail.filters import script_environment
from mail.filters.filter_result import NO_FILTERS, FilterResult
from mail.filters.script_cache import compile_script_cached
from mail.filters.script_environment import (
    NO_MAILBOXES,
    ScriptAccount,
    ScriptMailbox,
    ScriptMailboxes,
    UserScript,
)
from mail.inbound.incoming_message import IncomingMessage
from mail.inbound.spam_check import RecipientVerdict
from mail.runtime import inline_or_thread
from mail.sieve import (
    Edit,
    FileInto,
    Keep,
    MailNotification,
    Redirect,
    Reject,
    SieveEnvelope,
    SieveError,
    SievePlan,
    SieveRunError,
    TrackedDuplicate,
    VacationReply,
)
from mail.spam import verdict as spam_verdict
from mail.spam.verdict import SpamVerdict
from mail.storage.message_flags import MAX_KEYWORDS, columns_from_flags
from mail.storage.received_messages import receipt_digest
from models.mailboxes.tables import SpecialUse
from models.runtime.environment import Environment

log = logging.getLogger(__name__)

VIRUS_LEVEL = 5  # RFC 5235: a virus is certain


@dataclass(frozen=True, slots=True)
class PlannedPlacement:
    """The mailbox a message is stored in, with its flags and encryption key."""

    mailbox_id: int
    encryption_key: str | None = None  # OpenPGP; None: not encrypted
    new_mailbox_path: str | None = (
        None  # mailbox to create; `mailbox_id` is used if it can't be created
    )
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    keywords: Sequence[str] = ()
    edit_count: int = 0  # the first header edits of the plan that apply


@dataclass(frozen=True, slots=True)
class PlannedRedirect:
    """The address a message is redirected to, with the number of header edits to apply."""

    address: str
    edit_count: int = 0


@dataclass(frozen=True, slots=True)
class DeliveryPlan:
    """The delivery plan of one recipient."""

    recipient_verdict: RecipientVerdict  # verdict after filters
    placements: Sequence[PlannedPlacement]  # main placement first; empty: not stored
    fallback_placement: PlannedPlacement  # used if a redirect fails
    redirects: Sequence[PlannedRedirect] = ()
    rejection: str | None = None  # reason of the refusal; excludes all other actions
    vacation: VacationReply | None = None
    notifications: Sequence[MailNotification] = ()
    header_edits: Sequence[Edit] = ()
    new_duplicate_ids: Sequence[TrackedDuplicate] = ()
    tested_duplicate_ids: frozenset[str] = frozenset()  # IDs of `duplicate` tests
    known_duplicate_ids: frozenset[str] = frozenset()  # IDs of these tests that were known
    filter_result: FilterResult = (
        NO_FILTERS  # its targets, replies and webhooks are still to be done
    )
    mailboxes: ScriptMailboxes = NO_MAILBOXES
    script_id: int | None = None
    script_error: str | None = None  # error text that the user sees

    @property
    def is_stored(self) -> bool:
        """True if the message is stored in at least one mailbox."""
        return bool(self.placements)


@dataclass(frozen=True, slots=True)
class RuleInput:
    """A message as filters and scripts see it."""

    sieve_message: sieve.SieveMessage
    envelope_sender: str
    has_spam_score: bool = False  # a spam filter has scored the message
    virus_level: int | None = None  # RFC 5235, section 3.3
    in_memory: bool = False  # small enough to run rules on the event loop


@dataclass(frozen=True, slots=True)
class _PendingScript:
    """A script that will run for a recipient."""

    recipient_verdict: RecipientVerdict
    script: UserScript
    account: ScriptAccount
    receipt_digest: str
    known_duplicate_ids: frozenset[str] = frozenset()


async def plan_deliveries(
    environment: Environment,
    incoming: "IncomingMessage",
    recipient_verdicts: Sequence[RecipientVerdict],
    filter_results: Sequence[FilterResult] = (),
) -> list[DeliveryPlan]:
    """Return the delivery plan of each recipient, in the same order.

    Filter results are in the order of the recipients, or empty.
    """
    said = list(filter_results) or [NO_FILTERS] * len(recipient_verdicts)
    scripted = [each.recipient.user_id for each in recipient_verdicts if each.recipient.has_script]
    scripts = (
        await script_environment.load_active_scripts(environment, scripted) if scripted else {}
    )
    used = {user: script.extensions for user, script in scripts.items()}
    moved = [
        each.recipient.user_id
        for each, one in zip(recipient_verdicts, said, strict=True)
        if _needs_mailboxes(one)
    ]
    known = dict[int, ScriptAccount]()
    if used or moved:
        known = await script_environment.load_script_accounts(
            environment, {**dict.fromkeys(moved, ()), **used}
        )
    cases = [
        _PendingScript(
            each,
            scripts[key],
            known[key],
            receipt_digest(incoming.message, each.recipient, incoming.envelope_sender),
        )
        for each in recipient_verdicts
        if (key := each.recipient.user_id) in scripts and key in known
    ]
    plans = (
        await run_scripts(environment, rule_input(environment, incoming), cases) if cases else {}
    )
    return [
        plan_from_results(
            each,
            one,
            known.get(each.recipient.user_id, ScriptAccount()).mailboxes,
            plans.get(each.recipient.user_id),
        )
        for each, one in zip(recipient_verdicts, said, strict=True)
    ]


def _needs_mailboxes(filter_result: FilterResult) -> bool:
    """Return True if the filter result can only be applied with the mailboxes of the account."""
    places = (
        filter_result.mailbox_id is not None
        or filter_result.copy_mailbox_ids
        or filter_result.is_spam is not None
    )
    return bool(places or filter_result.replies)


def rule_input(environment: Environment, incoming: "IncomingMessage") -> RuleInput:
    """Return an incoming message as input of filters and scripts."""
    letter, scan = incoming.message, incoming.message.scan
    looked = scan is not None and scan.score is not None
    if incoming.from_trusted_server:
        found = spam_verdict.header_score(
            letter.facts.spam_headers, environment.options.spam_headers
        )
        looked = looked or found.source is not None
    virus = VIRUS_LEVEL if scan is not None and scan.virus_name else None
    return RuleInput(
        incoming.sieve_message,
        incoming.envelope_sender,
        looked,
        virus,
        incoming.is_small_and_in_memory,
    )


@dataclass(frozen=True, slots=True)
class ScriptOutcome:
    """The plan of a script, or the error of a script that failed."""

    script_id: int | None
    plan: SievePlan | None = None
    error: str | None = None
    known_duplicate_ids: frozenset[str] = frozenset()


async def run_scripts(
    environment: Environment, rule_input: RuleInput, pending_scripts: Sequence[_PendingScript]
) -> dict[int, ScriptOutcome]:
    """Run the scripts of several accounts and return their outcomes by account ID.

    A script that tests `duplicate` runs a second time if one of its IDs is known.
    """
    plans = await _run_all_once(environment, rule_input, pending_scripts)
    asked = {
        (
            case.recipient_verdict.recipient.user_id,
            case.receipt_digest,
        ): outcome.plan.checked_duplicate_keys
        for case in pending_scripts
        if (outcome := plans[case.recipient_verdict.recipient.user_id]).plan
        and outcome.plan.checked_duplicate_keys
    }
    if asked and (
        seen := await script_environment.load_ids_known_from_other_deliveries(environment, asked)
    ):
        again = [
            replace(case, known_duplicate_ids=frozenset(seen[key]))
            for case in pending_scripts
            if (key := case.recipient_verdict.recipient.user_id) in seen
        ]
        plans |= await _run_all_once(environment, rule_input, again)
    return plans


async def _run_all_once(
    environment: Environment, rule_input: RuleInput, pending_scripts: Sequence[_PendingScript]
) -> dict[int, ScriptOutcome]:
    """Run each script once and return the outcomes by account ID."""
    works = {
        ("script", case.recipient_verdict.recipient.user_id): partial(
            _run_script, environment, rule_input, case
        )
        for case in pending_scripts
    }
    outcomes = await inline_or_thread.run_inline_or_in_thread(works, in_memory=rule_input.in_memory)
    return {user: outcome for (_, user), outcome in outcomes.items()}


def _run_script(
    environment: Environment, rule_input: RuleInput, pending: _PendingScript
) -> ScriptOutcome:
    """Run one script. Errors become the outcome; they don't stop the delivery."""
    script, to = pending.script, pending.recipient_verdict.recipient
    envelope = SieveEnvelope(rule_input.envelope_sender, to.address)
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
        log.exception("a script could not be run", extra={"user": to.user_id})
        return ScriptOutcome(script.id, error="it could not be run; the server's log has more")
    return ScriptOutcome(script.id, plan, known_duplicate_ids=pending.known_duplicate_ids)


def error_text(error: SieveRunError) -> str:
    """Return the error of a script in one line, after the name of the included script."""
    return f"{error.script}: {error}" if error.script else str(error)


def plan_from_results(
    recipient_verdict: RecipientVerdict,
    filter_result: FilterResult,
    mailboxes: ScriptMailboxes,
    script_outcome: ScriptOutcome | None = None,
) -> DeliveryPlan:
    """Return the delivery plan from the verdict, the filter result and the script outcome."""
    recipient_verdict = _with_spam_mark_of_filters(
        recipient_verdict, filter_result.is_spam, mailboxes
    )
    default = _default_placement(recipient_verdict, filter_result, mailboxes)
    kept = default or PlannedPlacement(
        recipient_verdict.recipient.mailbox_id, recipient_verdict.recipient.encryption_key
    )
    copies = () if filter_result.is_deleted else _copy_placements(filter_result, mailboxes)
    usual = [default, *copies] if default else list(copies)
    done = DeliveryPlan(
        recipient_verdict,
        _unique_placements(usual),
        kept,
        filter_result=filter_result,
        mailboxes=mailboxes,
    )
    if script_outcome is None:
        return done
    done = replace(
        done,
        script_id=script_outcome.script_id,
        script_error=script_outcome.error,
        known_duplicate_ids=script_outcome.known_duplicate_ids,
    )
    return (
        done
        if script_outcome.plan is None
        else _delivery_plan_with_script_actions(done, script_outcome.plan, default, copies)
    )


def _with_spam_mark_of_filters(
    recipient_verdict: RecipientVerdict, spam_mark: bool | None, mailboxes: ScriptMailboxes
) -> RecipientVerdict:
    """Return the verdict that filters decide, with Junk or INBOX as mailbox if it changes.

    `spam_mark` is None if no filter decides.
    """
    verdict: SpamVerdict = spam_verdict.verdict_after_filter(recipient_verdict.verdict, spam_mark)
    if verdict.is_spam == recipient_verdict.verdict.is_spam:
        return replace(recipient_verdict, verdict=verdict)
    box = mailboxes.by_special_use(SpecialUse.JUNK if verdict.is_spam else SpecialUse.INBOX)
    to = (
        replace(recipient_verdict.recipient, mailbox_id=box.id, encryption_key=box.encryption_key)
        if box
        else recipient_verdict.recipient
    )
    return replace(recipient_verdict, verdict=verdict, recipient=to)


def _default_placement(
    recipient_verdict: RecipientVerdict, filter_result: FilterResult, mailboxes: ScriptMailboxes
) -> PlannedPlacement | None:
    """Return the placement of a kept message. Returns None if a filter deletes it."""
    if filter_result.is_deleted:
        return None
    spot = PlannedPlacement(
        recipient_verdict.recipient.mailbox_id, recipient_verdict.recipient.encryption_key
    )
    if not recipient_verdict.verdict.is_spam and (box := mailboxes.by_id(filter_result.mailbox_id)):
        spot = PlannedPlacement(box.id, box.encryption_key)
    return _with_filter_flags(spot, filter_result)


def _copy_placements(
    filter_result: FilterResult, mailboxes: ScriptMailboxes
) -> Sequence[PlannedPlacement]:
    """Return the placements of the copies that filters make."""
    found = [box for key in filter_result.copy_mailbox_ids if (box := mailboxes.by_id(key))]
    return [
        _with_filter_flags(PlannedPlacement(box.id, box.encryption_key), filter_result)
        for box in found
    ]


def _with_filter_flags(
    placement: PlannedPlacement, filter_result: FilterResult
) -> PlannedPlacement:
    """Return the placement with the flags and keywords that filters add and remove."""
    taken = {word.casefold() for word in filter_result.removed_keywords}
    words = {word.casefold(): word for word in (*placement.keywords, *filter_result.added_keywords)}
    keywords = [word for folded, word in words.items() if folded not in taken][:MAX_KEYWORDS]
    seen, flagged = (
        placement.seen or filter_result.is_seen,
        placement.flagged or filter_result.is_flagged,
    )
    return replace(placement, seen=seen, flagged=flagged, keywords=keywords)


def _delivery_plan_with_script_actions(
    delivery_plan: DeliveryPlan,
    script_plan: SievePlan,
    keep_placement: PlannedPlacement | None,
    copy_placements: Sequence[PlannedPlacement],
) -> DeliveryPlan:
    """Return the delivery plan with the actions of a script applied.

    The placement for `keep` is the default placement of the filters.
    """
    spots, errors = list[PlannedPlacement](), list[str]()
    more: dict[str, Any] = {}
    notices, sendings = list[MailNotification](), list[PlannedRedirect]()
    for action in script_plan.actions:
        if isinstance(action, Keep) and keep_placement is not None:
            spots.append(_with_action_flags(keep_placement, action, delivery_plan.filter_result))
        elif isinstance(action, FileInto):
            spots.append(_fileinto_placement(delivery_plan, action, errors))
        elif isinstance(action, Redirect):
            sendings.append(PlannedRedirect(action.address, action.edit_count))
        elif isinstance(action, Reject):
            more["rejection"] = action.reason
        elif isinstance(action, VacationReply):
            more["vacation"] = action
        elif isinstance(action, MailNotification):
            notices.append(action)
    if (
        delivery_plan.recipient_verdict.verdict.is_spam and sendings
    ):  # redirected spam would count against our reputation
        sendings = []
        spots = spots or [delivery_plan.fallback_placement]
    return replace(
        delivery_plan,
        placements=_unique_placements([*spots, *copy_placements])
        if "rejection" not in more
        else [],
        redirects=sendings,
        notifications=notices,
        header_edits=script_plan.edits,
        new_duplicate_ids=script_plan.tracked_duplicates,
        tested_duplicate_ids=script_plan.checked_duplicate_keys,
        script_error=errors[0] if errors else None,
        **more,
    )


def _fileinto_placement(
    delivery_plan: DeliveryPlan, action: FileInto, errors: list[str]
) -> PlannedPlacement:
    """Return the placement of a `fileinto` action; report a missing mailbox in the errors."""
    boxes, to = delivery_plan.mailboxes, delivery_plan.recipient_verdict.recipient
    inbox = boxes.by_special_use(SpecialUse.INBOX) or ScriptMailbox(
        to.mailbox_id, "INBOX", None, to.encryption_key
    )
    box = boxes.find_by_special_use_or_path(action.mailbox, action.special_use)
    if box is not None:
        spot = PlannedPlacement(box.id, box.encryption_key)
    elif action.create_mailbox:
        spot = PlannedPlacement(inbox.id, boxes.new_mailbox_key, action.mailbox)
    else:
        errors.append(f'there is no mailbox "{action.mailbox}": the message went to INBOX')
        spot = PlannedPlacement(inbox.id, inbox.encryption_key)
    return _with_action_flags(spot, action, delivery_plan.filter_result)


def _with_action_flags(
    placement: PlannedPlacement, action: Keep | FileInto, filter_result: FilterResult
) -> PlannedPlacement:
    """Return the placement with the flags and header edits of an action."""
    marks = columns_from_flags(action.flags)
    keywords = [*placement.keywords, *marks.pop("keywords")]
    return _with_filter_flags(
        replace(placement, **marks, keywords=keywords, edit_count=action.edit_count), filter_result
    )


def _unique_placements(placements: Sequence[PlannedPlacement]) -> list[PlannedPlacement]:
    """Return one placement per mailbox: the position of the first, the flags of the last."""
    found: dict[tuple[int, str | None], PlannedPlacement] = {}
    for spot in placements:
        found[spot.mailbox_id if spot.new_mailbox_path is None else 0, spot.new_mailbox_path] = spot
    return list(found.values())
