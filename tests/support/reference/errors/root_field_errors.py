"""The errors of each root field, and those that every mutation can have."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from graphql import GraphQLInputObjectType, get_named_type

from graph.types.error_references import IDS_PART, PARENT_FIELDS
from tests.support.reference.areas import RootField, iter_root_fields
from tests.support.reference.errors.error_site import ErrorSite
from tests.support.reference.errors.error_sites import error_sites
from tests.support.reference.errors.reach import reach_of
from tests.support.schema.error_paths import is_path_in_input
from tests.support.schema.nested_inputs import iter_nested_fields
from tests.support.schema.printed_schema import SDL

# Functions that run for every mutation, around its resolver.
MUTATION_FUNCTIONS = (
    "graph.types.mutations.MutationExecution.require_guard_or_return_refusal",
    "graph.types.mutations.MutationExecution.resolve_async",
    "graph.types.mutations.execute_atomically",
)
GUARD_FUNCTION = "resolvers.viewer.Viewer.require"  # it runs for every field with a guard

# Steps of a change of messages, which all mutations of messages share.
BULK = "resolvers.messages.bulk"
MOVE_STEPS = (
    f"{BULK}.apply._move_or_copy_to_mailbox",
    f"{BULK}.bulk_tasks._require_quota",
    f"{BULK}.rights.require_target_and_other_owner",
)
FLAG_STEPS = (
    f"{BULK}.bulk_changes._change_flags_and_store_undo",
    f"{BULK}.flags.change_flags",
    f"{BULK}.metadata_quota.require_quota_for_metadata",
)
REFUSED_SNOOZE = f"{BULK}.snooze.require_no_snooze"
SNOOZE_STEPS = (REFUSED_SNOOZE, f"{BULK}.snooze.snooze_or_unsnooze_messages")
QUOTA_STEPS = ("resolvers.mailboxes.rights.hide_quota_figures_from_others",)
FILTER_STEPS = (
    "resolvers.messages.filters.filter_conditions.MessageSelector.validated_with_filter_sql",
)
READING_STEPS = ("resolvers.messages.filters.filter_lookups._find_matching_ids_by_reading",)
RELAY_HOST_STEPS = ("resolvers.routing.mutations._remove_relay_hosts_from_domains",)
INSERT_OF_LINKS = "resolvers.files.shares.insert_shares"
# Fields of `messageSend` that a stored draft doesn't have.
SUBMISSION = "resolvers.submission"
FIELDS_OF_NEW_MESSAGES = (
    f"{SUBMISSION}.attachments.read_attachments",
    f"{SUBMISSION}.composition._read_own_identity",
    f"{SUBMISSION}.composition._refuse_identity_besides_from",
    f"{SUBMISSION}.file_attachments.prepare_links_of_unattached_files",
    f"{SUBMISSION}.file_attachments.read_attached_files",
    f"{SUBMISSION}.file_attachments.require_valid_file_attachments",
    f"{SUBMISSION}.message_source.read_inherited_header_and_content",
    f"{SUBMISSION}.outgoing_messages._repair_and_authorize_whole_message",
    f"{SUBMISSION}.outgoing_messages._require_compatible_whole_message",
)
# The limit of received mail, which is not for messages that users store.
RECEIVED_MAIL_STEPS = ("mail.limits.user_limits.received_limit_error",)
# The mutation has locked the users and their domains before it changes the users.
MOVED_USER_STEPS = ("resolvers.users.user_locks._require_users_in_locked_domains",)
# The mutation names one user, or no users.
USER_LIMITS = (
    "resolvers.users.selection._require_list_lengths_within_limit",
    "resolvers.users.selection._require_user_count_within_limit",
)
# Functions that can't refuse a mutation: its input has no field for them, or the case can't occur.
UNUSED_FUNCTIONS = {
    "draftSave": (*RECEIVED_MAIL_STEPS, *USER_LIMITS),
    # The links of the draft exist already.
    "draftSend": (*FIELDS_OF_NEW_MESSAGES, INSERT_OF_LINKS),
    # Imported filters have no custom data, which the quota limits.
    "filterImport": ("resolvers.filters.mutations.require_quota_for_new_filters",),
    "identityProviderDelete": MOVED_USER_STEPS,
    "messageCopy": (*FLAG_STEPS, *SNOOZE_STEPS),
    "messageDeduplicate": (*MOVE_STEPS, *FLAG_STEPS, *SNOOZE_STEPS, *QUOTA_STEPS),
    "messageDelete": (*MOVE_STEPS, *FLAG_STEPS, *SNOOZE_STEPS, *QUOTA_STEPS),
    # An imported message has no links.
    "messageImport": (*RECEIVED_MAIL_STEPS, INSERT_OF_LINKS),
    "messageMove": SNOOZE_STEPS,
    "messageUpdate": MOVE_STEPS,
    # The allowed senders are of users, not of a tag.
    "quarantineRelease": ("resolvers.sql_text.validated_distinct_tags",),
    # A saved search can't have the conditions that read messages.
    "savedSearchCreate": READING_STEPS,
    "savedSearchUpdate": READING_STEPS,
    "threadUpdate": (*MOVE_STEPS, *FILTER_STEPS, *USER_LIMITS, REFUSED_SNOOZE),
    "tlsPolicyDelete": RELAY_HOST_STEPS,
    # A TLS policy keeps its destination.
    "tlsPolicyUpdate": (
        "resolvers.routing.mutations._require_destination_free",
        "resolvers.routing.mutations._require_single_row",
    ),
    # Only the response of a security key needs the public URL of the server.
    "totpVerify": ("resolvers.auth.second_factors.webauthn.require_relying_party",),
    "transportDelete": RELAY_HOST_STEPS,
    # It selects the owners of the changed messages, which were within the limit at the change.
    "undo": USER_LIMITS,
}


@cache
def common_mutation_errors() -> tuple[ErrorSite, ...]:
    """The errors that every mutation can have."""
    return tuple(sorted(error_sites(reach_of(*MUTATION_FUNCTIONS))))


@cache
def common_query_errors() -> tuple[ErrorSite, ...]:
    """The errors that every query and subscription with a guard can have."""
    return tuple(sorted(error_sites(reach_of(GUARD_FUNCTION))))


@cache
def errors_by_root_field() -> dict[str, tuple[ErrorSite, ...]]:
    """The errors of each root field, by its name, without the common ones."""
    return {
        field.name: tuple(sorted(errors_of_root_field(field))) for field in iter_root_fields(SDL)
    }


def errors_of_root_field(root_field: RootField) -> set[ErrorSite]:
    """Return the errors of one root field, without the common ones."""
    is_mutation = root_field.operation == "mutation"
    common = set(common_mutation_errors() if is_mutation else common_query_errors())
    fields: Mapping[str, Any] = root_field.field.args
    if is_mutation:
        named = get_named_type(fields["input"].type)
        assert isinstance(named, GraphQLInputObjectType)
        fields = named.fields
    inputs = {name: field.type for name, field in fields.items()}
    names = _field_names(fields)
    errors = set()
    reach = reach_of(root_field.resolver_name, without=UNUSED_FUNCTIONS.get(root_field.name, ()))
    for site in error_sites(reach):
        parts = site.path.split(".")
        if site not in common and (not site.path or {parts[0], parts[-1]} & names):
            errors.add(replace(site, path=_complete_path(site.path, inputs)))
    return _without_repetitions(errors)


def _without_repetitions(errors: set[ErrorSite]) -> set[ErrorSite]:
    """Leave out errors without a path or condition that another error has with it."""
    count = Counter((error.code, error.constraint, error.condition) for error in errors)
    with_text = {
        (error.code, error.constraint) for error in errors if error.condition or error.path
    }
    return {
        error
        for error in errors
        if error.path
        or (error.condition and count[error.code, error.constraint, error.condition] == 1)
        or (not error.condition and (error.code, error.constraint) not in with_text)
    }


def _field_names(fields: Mapping[str, Any]) -> set[str]:
    """The names of the fields and of those of the inputs in them."""
    names = set[str]()
    for name, field in iter_nested_fields(fields):
        names.add(name)
        if name.endswith("s") and get_named_type(field.type).name.endswith("Ref"):
            names.add(IDS_PART)
    return names


def _complete_path(path: str, inputs: dict[str, Any]) -> str:
    """The path from the input, as clients get it, or an empty text if it is none."""
    first, _, rest = path.partition(".")
    candidates = [path]
    if first == IDS_PART:
        lists = [
            name for name, input_ in inputs.items() if get_named_type(input_).name.endswith("Ref")
        ]
        candidates += [f"{name}.{rest}".rstrip(".") for name in lists if name.endswith("s")]
    candidates += [f"{parent}.{path}" for parent in PARENT_FIELDS]
    for candidate in candidates if path else ():
        first, *parts = candidate.split(".")
        if first in inputs and is_path_in_input(inputs[first], parts):
            return candidate
    return ""
