"""Store the settings, identities, filters and rules of an account record."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.archives.json_lines import AccountRecord, InvalidRecordError, parse_timestamp
from mail.recipients.forward_targets import MASKED_TEXT
from models.errors import InvalidInput, LimitReached, NotFound, RequestError
from models.spam.sender_rules import SenderAction
from models.store.columns import select_columns
from models.users.tables import Frequency, SubaddressAction, User
from models.validation_constraints import ValidationConstraint
from resolvers.admin import key_values
from resolvers.admin.key_values import KeyValueNamespace, NewKeyValue
from resolvers.autoreply import autoreplies
from resolvers.filters import sieve_script_mutations, sieve_scripts, transfer
from resolvers.mailboxes import subscription_mutations
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages import labels
from resolvers.messages.labels import LabelChange, NewLabel
from resolvers.search import saved_searches
from resolvers.spam import sender_rule_mutations
from resolvers.spam.sender_rule_mutations import NewSenderRules, RuleOwner
from resolvers.submission.identities import mutations as identity_mutations
from resolvers.submission.identities.validation import IdentityChanges
from resolvers.transfer import import_mailboxes
from resolvers.transfer.running_import import RunningImport
from resolvers.users import custom_data
from resolvers.users import update as user_update
from resolvers.users.selection import VIEWER_ONLY
from resolvers.users.update import UserChanges

SETTING_TYPES: Mapping[str, type | tuple[type, ...]] = {  # by column, in the order of the import
    "name": str,
    "language": str,
    "retention": int,
    "spam_level": int,
    "junk_score": (int, float),
    "reject_score": (int, float),
    "quarantine_notification": str,
    "subaddress_action": str,
    "public_metadata": dict,
    "require_inbound_tls": bool,
    "require_outbound_tls": bool,
    "upload_sent_messages": bool,
    "openpgp_public_key": str,
    "encrypt_messages": bool,  # requires the key
    "encrypt_forwarded": bool,
    "forward_to": list,  # after the encryption of what is forwarded
}
SETTING_ENUMS: Mapping[str, type[StrEnum]] = {
    "quarantine_notification": Frequency,
    "subaddress_action": SubaddressAction,
}
IDENTITY_FIELDS = {  # column and type by the name in the record
    "name": ("name", str),
    "replyTo": ("reply_to", str),
    "signatureText": ("signature_text", str),
    "signatureHtml": ("signature_html", str),
    "default": ("preferred", bool),
    "bcc": ("bcc", list),
}


async def import_settings_key_values_labels_rules_and_searches(
    running: RunningImport, account: AccountRecord
) -> None:
    """Import the user's settings, key-values, labels, sender rules and saved searches.

    An entry that can't be stored is added to the skipped ones. If a limit is reached, the next
    entries of that kind are left out.
    """
    await _import_changed_settings(running, account.settings)
    for entries, import_entry in (
        (account.key_values, _import_key_value_unless_limit_reached),
        (account.labels, _import_label_unless_limit_reached),
        (account.sender_rules, _import_sender_rule_unless_limit_reached),
        (account.saved_searches, _import_saved_search_unless_limit_reached),
    ):
        for entry in entries:
            if not await import_entry(running, entry):
                break


async def import_identities_filters_reply_and_scripts(
    running: RunningImport, account: AccountRecord
) -> None:
    """Import identities, filters, autoreply and scripts, which need the mailboxes."""
    if running.target_path is None:
        await _subscribe_to_paths(running, account.subscriptions)
    for entry in account.identities:
        if not await _import_identity_unless_limit_reached(running, entry):
            break
    for entry in account.filters:
        if not await _import_filter_unless_limit_reached(running, entry):
            break
    if account.autoreply:
        await _import_autoreply_or_record_skipped(running, account.autoreply)
    for entry in account.scripts:
        if not await _import_sieve_script_unless_limit_reached(running, entry):
            break


async def _import_filter_unless_limit_reached(
    running: RunningImport, record: Mapping[str, Any]
) -> bool:
    """Import a filter. Returns False if the limit on filters is reached."""
    name = f"filter {str(record.get('name') or '')[:100]}".strip()
    try:
        for target in await transfer.import_filter_returning_targets_without_password(
            running.ctx, record, running.mailbox_ids
        ):
            running.outcome.add_skipped(
                name, f"The target {target} was not imported: an archive contains no passwords."
            )
    except RequestError as problem:
        running.outcome.add_skipped(name, str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _import_autoreply_or_record_skipped(
    running: RunningImport, record: Mapping[str, Any]
) -> None:
    """Import the autoreply. It is turned off if one of its addresses does not exist."""
    try:
        facts = autoreplies.parse_exported_autoreply(record)
        try:
            await autoreplies.set_autoreplies(running.ctx, VIEWER_ONLY, facts)
        except NotFound as problem:
            running.outcome.add_skipped("addresses of the autoreply", problem.message)
            await autoreplies.set_autoreplies(
                running.ctx, VIEWER_ONLY, {**facts, "addresses": [], "enabled": False}
            )
    except (RequestError, InvalidRecordError) as problem:
        running.outcome.add_skipped("autoreply", str(problem))


async def _import_sieve_script_unless_limit_reached(
    running: RunningImport, record: Mapping[str, Any]
) -> bool:
    """Import a Sieve script. Returns False if the limit is reached.

    An existing script of this name is not changed.
    """
    name, content = record.get("name"), record.get("content")
    if not isinstance(name, str) or not isinstance(content, str):
        running.outcome.add_skipped("script", "The record is invalid.")
        return True
    existing = await sieve_scripts.load_visible_scripts_by_names(
        running.ctx, [(running.user.id, name)]
    )
    if existing[0] is not None:
        if existing[0].content != content:
            running.outcome.add_skipped(f"Sieve script {name}", "Another script has this name.")
        return True
    try:
        activate = record.get(
            "active"
        ) is True and not await sieve_scripts.has_visible_active_script(
            running.ctx, running.user.id
        )
        await sieve_script_mutations.put_script(
            running.ctx, VIEWER_ONLY, name, content, activates=activate
        )
    except LimitReached as full:
        running.outcome.add_skipped(f"Sieve script {name}", full.message)
        return False
    except RequestError as problem:
        running.outcome.add_skipped(f"Sieve script {name}", problem.all_errors[0].message)
    return True


async def _import_identity_unless_limit_reached(
    running: RunningImport, record: Mapping[str, Any]
) -> bool:
    """Import an identity. Returns False if the limit on identities is reached."""
    address, path = record.get("address"), record.get("sentMailbox")
    try:
        values = {}
        for name, (column, kind) in IDENTITY_FIELDS.items():
            if (value := record.get(name)) is not None:
                values[column] = value
                if not isinstance(value, kind):
                    raise InvalidInput(
                        "The record is invalid.", constraint=ValidationConstraint.TYPE, path=[name]
                    )
        if not isinstance(address, str) or not all(
            isinstance(value, str) for value in values.get("bcc", ())
        ):
            raise InvalidInput(
                "The address is missing.", constraint=ValidationConstraint.TYPE, path=["address"]
            )
        mailbox = (
            MailboxSelector(path=path)
            if isinstance(path, str) and path in running.mailbox_ids
            else None
        )
        if path is not None and mailbox is None:
            running.outcome.add_skipped(
                f"mailbox for sent messages of {address}", "Mailbox not found."
            )
        await identity_mutations.set_own_identity(
            running.ctx,
            address,
            IdentityChanges(values, mailbox, changes_mailbox=mailbox is not None),
        )
    except RequestError as problem:
        running.outcome.add_skipped(f"identity {address}", str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _import_sender_rule_unless_limit_reached(
    running: RunningImport, record: Mapping[str, Any]
) -> bool:
    """Import a sender rule. Returns False if the limit on rules is reached."""
    pattern, action, comment = (record.get(name) for name in ("pattern", "action", "comment"))
    try:
        if not isinstance(pattern, str) or action not in set(SenderAction):
            raise InvalidInput(
                "The pattern or action is missing.",
                constraint=ValidationConstraint.TYPE,
                path=["pattern"],
            )
        comment_text = comment if isinstance(comment, str) else None
        new = NewSenderRules(SenderAction(action), [pattern], comment_text, sets_comment=True)
        await sender_rule_mutations.create_or_update_sender_rules(
            running.ctx, RuleOwner(user_id=running.user.id), new
        )
    except RequestError as problem:
        running.outcome.add_skipped(f"sender rule {pattern}", str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _import_label_unless_limit_reached(
    running: RunningImport, record: Mapping[str, Any]
) -> bool:
    """Import a label. Returns False if the limit on labels is reached."""
    keyword, name, color = (record.get(part) for part in ("keyword", "name", "color"))
    try:
        if not (isinstance(keyword, str) and isinstance(name, str)):
            raise InvalidInput(
                "The keyword or name is missing.",
                constraint=ValidationConstraint.TYPE,
                path=["keyword"],
            )
        shade = color if isinstance(color, str) else None
        known_ids = await labels.load_ids_by_keyword(running.ctx, [keyword])
        if known_ids:
            change = LabelChange(name, shade, changes_color=True)
            await labels.update_labels(running.ctx, list(known_ids.values()), change)
        else:
            await labels.create_label(running.ctx, NewLabel(keyword, name, shade))
    except RequestError as problem:
        running.outcome.add_skipped(f"label {keyword}", str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _import_changed_settings(running: RunningImport, settings: Mapping[str, Any]) -> None:
    """Set the settings that differ from the user's. A switch is turned on, never off."""
    statement = select(*select_columns(User, SETTING_TYPES)).where(col(User.id) == running.user.id)
    (user,) = await running.ctx.read(statement)
    for name, json_type in SETTING_TYPES.items():
        value = settings.get(name)
        if value is None or (json_type is bool and value is False) or value == getattr(user, name):
            continue
        if name == "forward_to":
            await _add_forward_targets(running, value, user.forward_to)
        else:
            await _set_setting_or_record_skipped(running, name, value)


async def _add_forward_targets(
    running: RunningImport, targets: Any, own_targets: Sequence[str]
) -> None:
    """Add the forward targets that the user lacks, but no relays with a password."""
    new_targets = []
    for target in targets if isinstance(targets, list) else ():
        if f":{MASKED_TEXT}@" in str(target):
            running.outcome.add_skipped(
                "setting forward_to",
                f"The target {target} was not imported: an archive contains no passwords.",
            )
        elif isinstance(target, str) and target not in own_targets:
            new_targets.append(target)
    if new_targets:
        await _set_setting_or_record_skipped(running, "forward_to", [*own_targets, *new_targets])


async def _set_setting_or_record_skipped(running: RunningImport, name: str, value: Any) -> None:
    """Set one setting of the user. A refusal is added to the skipped items."""
    try:
        patch = _user_changes_from_setting(running, name, value)
        await user_update.update_users(running.ctx, VIEWER_ONLY, patch)
    except RequestError as problem:
        running.outcome.add_skipped(f"setting {name}", problem.message)


def _user_changes_from_setting(running: RunningImport, name: str, value: Any) -> UserChanges:
    """Return the change that sets a column to a value of the record. Raises InvalidInput."""
    enum = SETTING_ENUMS.get(name)
    has_type = isinstance(value, SETTING_TYPES[name])
    if not has_type or (enum and value not in list(enum)):
        raise InvalidInput(
            "The record is invalid.", constraint=ValidationConstraint.TYPE, path=[name]
        )
    if name == "openpgp_public_key":
        return UserChanges(openpgp_public_key=str(value))
    if name == "forward_to":
        return UserChanges(forward_to=value)
    if name == "public_metadata":
        max_size = running.ctx.environment.options.metadata_max_size
        return UserChanges({name: custom_data.validate_custom_data(value, [name], max_size)})
    if name == "retention":
        return UserChanges({name: import_mailboxes.retention_from_seconds_or_none(value)})
    return UserChanges({name: enum(value) if enum else value})


async def _subscribe_to_paths(running: RunningImport, paths: Sequence[str]) -> None:
    """Subscribe the user to paths without a mailbox."""
    for path in paths:
        try:
            await subscription_mutations.set_subscribed(
                running.ctx, [MailboxSelector(path=path)], is_subscribed=True
            )
        except RequestError as problem:
            running.outcome.add_skipped(f"subscription to {path}", problem.message)
            if isinstance(problem, LimitReached):
                break


async def _import_saved_search_unless_limit_reached(
    running: RunningImport, record: Mapping[str, Any]
) -> bool:
    """Import a saved search. Returns False if the limit on saved searches is reached."""
    name, query = record.get("name"), record.get("query")
    try:
        if not (isinstance(name, str) and isinstance(query, str)):
            raise InvalidInput(
                "The name or query is missing.",
                constraint=ValidationConstraint.TYPE,
                path=["query"],
            )
        await saved_searches.import_saved_search(running.ctx, name, query)
    except RequestError as problem:
        running.outcome.add_skipped(f"saved search {name}", problem.message)
        return not isinstance(problem, LimitReached)
    return True


async def _import_key_value_unless_limit_reached(
    running: RunningImport, record: Mapping[str, Any]
) -> bool:
    """Import a key-value. Returns False if the limit on key-values is reached."""
    store, key, value = (record.get(name) for name in ("store", "key", "value"))
    try:
        if not (isinstance(store, str) and isinstance(key, str) and isinstance(value, str)):
            raise InvalidInput(
                "The key, store or value is missing.",
                constraint=ValidationConstraint.TYPE,
                path=["key"],
            )
        expires = parse_timestamp(record.get("expires"))
        ttl = None if expires is None else expires - running.ctx.environment.now()
        await key_values.set_key_value(
            running.ctx, KeyValueNamespace(running.user.id, store), key, NewKeyValue(value, ttl)
        )
    except (RequestError, InvalidRecordError) as problem:
        running.outcome.add_skipped(f"value {key}", str(problem))
        return not isinstance(problem, LimitReached)
    return True
