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
from typing import Any

from mail.delivery.script_runs import PendingScript, RuleInput, ScriptOutcome, run_scripts
from mail.filters import script_environment
from mail.filters.filter_result import NO_FILTERS, FilterResult
from mail.filters.script_environment import (
    NO_MAILBOXES,
    ScriptAccount,
    ScriptMailbox,
    ScriptMailboxes,
)
from mail.inbound.incoming_message import IncomingMessage
from mail.inbound.spam_check import RecipientVerdict
from mail.sieve import (
    Edit,
    FileInto,
    Keep,
    MailNotification,
    Redirect,
    Reject,
    SievePlan,
    TrackedDuplicate,
    VacationReply,
)
from mail.spam import verdict as spam_verdict
from mail.spam.verdict import SpamVerdict
from mail.storage.message_flags import (
    MAX_KEYWORDS,
    columns_from_script_flags,
    unique_keywords,
    without_keywords,
)
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


async def run_scripts_and_plan_deliveries(
    environment: Environment,
    incoming: "IncomingMessage",
    recipient_verdicts: Sequence[RecipientVerdict],
    filter_results: Sequence[FilterResult] = (),
) -> list[DeliveryPlan]:
    """Return the delivery plan of each recipient, in the same order.

    Filter results are in the order of the recipients, or empty.
    """
    results = list(filter_results) or [NO_FILTERS] * len(recipient_verdicts)
    scripted = [
        verdict.recipient.user_id for verdict in recipient_verdicts if verdict.recipient.has_script
    ]
    scripts = (
        await script_environment.load_active_scripts(environment, scripted) if scripted else {}
    )
    used = {user: script.extensions for user, script in scripts.items()}
    moved = [
        verdict.recipient.user_id
        for verdict, result in zip(recipient_verdicts, results, strict=True)
        if _needs_mailboxes(result)
    ]
    accounts_by_id = dict[int, ScriptAccount]()
    if used or moved:
        accounts_by_id = await script_environment.load_script_accounts(
            environment, {**dict.fromkeys(moved, ()), **used}
        )
    cases = [
        PendingScript(
            verdict,
            scripts[key],
            accounts_by_id[key],
            receipt_digest(incoming.message, verdict.recipient, incoming.envelope_sender),
        )
        for verdict in recipient_verdicts
        if (key := verdict.recipient.user_id) in scripts and key in accounts_by_id
    ]
    plans = (
        await run_scripts(
            environment, rule_input_from_incoming_message(environment, incoming), cases
        )
        if cases
        else {}
    )
    return [
        plan_from_results(
            verdict,
            result,
            accounts_by_id.get(verdict.recipient.user_id, ScriptAccount()).mailboxes,
            plans.get(verdict.recipient.user_id),
            no_forward_score=environment.options.spam_no_forward_score,
        )
        for verdict, result in zip(recipient_verdicts, results, strict=True)
    ]


def _needs_mailboxes(filter_result: FilterResult) -> bool:
    """Return True if the filter result can only be applied with the mailboxes of the account."""
    has_target_mailbox = (
        filter_result.mailbox_id is not None
        or filter_result.copy_mailbox_ids
        or filter_result.is_spam is not None
    )
    return bool(has_target_mailbox or filter_result.replies)


def rule_input_from_incoming_message(
    environment: Environment, incoming: "IncomingMessage"
) -> RuleInput:
    """Return an incoming message as input of filters and scripts."""
    message, scan = incoming.message, incoming.message.scan
    looked = scan is not None and scan.score is not None
    if incoming.from_trusted_server:
        header_score = spam_verdict.header_score(
            message.facts.spam_headers, environment.options.spam_headers
        )
        looked = looked or header_score.source is not None
    virus = VIRUS_LEVEL if scan is not None and scan.virus_name else None
    return RuleInput(
        incoming.sieve_message,
        incoming.envelope_sender,
        looked,
        virus,
        incoming.is_small_and_in_memory,
    )


def plan_from_results(
    recipient_verdict: RecipientVerdict,
    filter_result: FilterResult,
    mailboxes: ScriptMailboxes,
    script_outcome: ScriptOutcome | None = None,
    *,
    no_forward_score: int,
) -> DeliveryPlan:
    """Return the delivery plan from the verdict, the filter result and the script outcome.

    From the spam score `no_forward_score`, the message is kept in place of forwards and redirects.
    """
    recipient_verdict = _with_spam_mark_of_filters(
        recipient_verdict, filter_result.is_spam, mailboxes
    )
    # Forwarded spam would count against the reputation of this server.
    allows_forwards = recipient_verdict.verdict.allows_forwards(no_forward_score)
    is_kept = bool(filter_result.targets) and not allows_forwards
    if is_kept:
        filter_result = replace(filter_result, targets=(), is_deleted=False)
    default = _placement_by_filters_unless_deleted(recipient_verdict, filter_result, mailboxes)
    fallback_placement = default or PlannedPlacement(
        recipient_verdict.recipient.mailbox_id, recipient_verdict.recipient.encryption_key
    )
    copies = () if filter_result.is_deleted else _copy_placements(filter_result, mailboxes)
    usual_placements = [default, *copies] if default else list(copies)
    plan = DeliveryPlan(
        recipient_verdict,
        _unique_placements(usual_placements),
        fallback_placement,
        filter_result=filter_result,
        mailboxes=mailboxes,
    )
    if script_outcome is None:
        return plan
    plan = replace(
        plan,
        script_id=script_outcome.script_id,
        script_error=script_outcome.error,
        known_duplicate_ids=script_outcome.known_duplicate_ids,
    )
    if script_outcome.plan is None:
        return plan
    plan = _delivery_plan_with_script_actions(plan, script_outcome.plan, default, copies)
    if is_kept or (plan.redirects and not allows_forwards):
        plan = _with_copy_in_place_of_redirects(plan)
    return plan


def _with_copy_in_place_of_redirects(plan: DeliveryPlan) -> DeliveryPlan:
    """Return the plan without redirects. A message that would be stored nowhere is kept."""
    keeps = not plan.placements and plan.rejection is None
    placements = [plan.fallback_placement] if keeps else plan.placements
    return replace(plan, redirects=(), placements=placements)


def _with_spam_mark_of_filters(
    recipient_verdict: RecipientVerdict, spam_mark: bool | None, mailboxes: ScriptMailboxes
) -> RecipientVerdict:
    """Return the verdict that filters decide, with Junk or INBOX as mailbox if it changes.

    `spam_mark` is None if no filter decides.
    """
    verdict: SpamVerdict = spam_verdict.verdict_after_filter(recipient_verdict.verdict, spam_mark)
    if verdict.is_spam == recipient_verdict.verdict.is_spam:
        return replace(recipient_verdict, verdict=verdict)
    mailbox = mailboxes.find_by_special_use(
        SpecialUse.JUNK if verdict.is_spam else SpecialUse.INBOX
    )
    recipient = (
        replace(
            recipient_verdict.recipient,
            mailbox_id=mailbox.id,
            encryption_key=mailbox.encryption_key,
        )
        if mailbox
        else recipient_verdict.recipient
    )
    return replace(recipient_verdict, verdict=verdict, recipient=recipient)


def _placement_by_filters_unless_deleted(
    recipient_verdict: RecipientVerdict, filter_result: FilterResult, mailboxes: ScriptMailboxes
) -> PlannedPlacement | None:
    """Return where the filters place a message, with their flags; None if a filter deletes it.

    It is the place of a message that a Sieve script keeps.
    """
    if filter_result.is_deleted:
        return None
    placement = PlannedPlacement(
        recipient_verdict.recipient.mailbox_id, recipient_verdict.recipient.encryption_key
    )
    if not recipient_verdict.verdict.is_spam and (
        mailbox := mailboxes.find_by_id(filter_result.mailbox_id)
    ):
        placement = PlannedPlacement(mailbox.id, mailbox.encryption_key)
    return _with_flag_changes_of_filters(placement, filter_result)


def _copy_placements(
    filter_result: FilterResult, mailboxes: ScriptMailboxes
) -> Sequence[PlannedPlacement]:
    """Return the placements of the copies that filters make."""
    target_mailboxes = [
        mailbox for key in filter_result.copy_mailbox_ids if (mailbox := mailboxes.find_by_id(key))
    ]
    return [
        _with_flag_changes_of_filters(
            PlannedPlacement(mailbox.id, mailbox.encryption_key), filter_result
        )
        for mailbox in target_mailboxes
    ]


def _with_flag_changes_of_filters(
    placement: PlannedPlacement, filter_result: FilterResult
) -> PlannedPlacement:
    """Return the placement with the flags and keywords that filters add and remove."""
    keywords = without_keywords(
        unique_keywords([*placement.keywords, *filter_result.added_keywords]),
        filter_result.removed_keywords,
    )[:MAX_KEYWORDS]
    seen = placement.seen or filter_result.is_seen
    flagged = placement.flagged or filter_result.is_flagged
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
    script_changes: dict[str, Any] = {}
    notices, sendings = list[MailNotification](), list[PlannedRedirect]()
    for action in script_plan.actions:
        if isinstance(action, Keep) and keep_placement is not None:
            spots.append(
                _with_flags_and_edits_of_action(keep_placement, action, delivery_plan.filter_result)
            )
        elif isinstance(action, FileInto):
            spots.append(_fileinto_placement(delivery_plan, action, errors))
        elif isinstance(action, Redirect):
            sendings.append(PlannedRedirect(action.address, action.edit_count))
        elif isinstance(action, Reject):
            script_changes["rejection"] = action.reason
        elif isinstance(action, VacationReply):
            script_changes["vacation"] = action
        elif isinstance(action, MailNotification):
            notices.append(action)
    return replace(
        delivery_plan,
        placements=_unique_placements([*spots, *copy_placements])
        if "rejection" not in script_changes
        else [],
        redirects=sendings,
        notifications=notices,
        header_edits=script_plan.edits,
        new_duplicate_ids=script_plan.tracked_duplicates,
        tested_duplicate_ids=script_plan.checked_duplicate_keys,
        script_error=errors[0] if errors else None,
        **script_changes,
    )


def _fileinto_placement(
    delivery_plan: DeliveryPlan, action: FileInto, errors: list[str]
) -> PlannedPlacement:
    """Return the placement of a `fileinto` action; report a missing mailbox in the errors."""
    mailboxes, recipient = delivery_plan.mailboxes, delivery_plan.recipient_verdict.recipient
    inbox = mailboxes.find_by_special_use(SpecialUse.INBOX) or ScriptMailbox(
        recipient.mailbox_id, "INBOX", None, recipient.encryption_key
    )
    mailbox = mailboxes.find_by_special_use_or_path(action.mailbox, action.special_use)
    if mailbox is not None:
        placement = PlannedPlacement(mailbox.id, mailbox.encryption_key)
    elif action.create_mailbox:
        placement = PlannedPlacement(inbox.id, mailboxes.new_mailbox_key, action.mailbox)
    else:
        errors.append(f'There is no mailbox "{action.mailbox}": the message was stored in INBOX.')
        placement = PlannedPlacement(inbox.id, inbox.encryption_key)
    return _with_flags_and_edits_of_action(placement, action, delivery_plan.filter_result)


def _with_flags_and_edits_of_action(
    placement: PlannedPlacement, action: Keep | FileInto, filter_result: FilterResult
) -> PlannedPlacement:
    """Return the placement with the flags and header edits of an action."""
    flag_columns = columns_from_script_flags(action.flags)
    keywords = [*placement.keywords, *flag_columns.pop("keywords")]
    return _with_flag_changes_of_filters(
        replace(placement, **flag_columns, keywords=keywords, edit_count=action.edit_count),
        filter_result,
    )


def _unique_placements(placements: Sequence[PlannedPlacement]) -> list[PlannedPlacement]:
    """Return one placement per mailbox: the position of the first, the flags of the last."""
    found: dict[tuple[int, str | None], PlannedPlacement] = {}
    for placement in placements:
        found[
            placement.mailbox_id if placement.new_mailbox_path is None else 0,
            placement.new_mailbox_path,
        ] = placement
    return list(found.values())
