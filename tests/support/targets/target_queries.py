"""Queries on a target, with one document for each authorization decision.

`@Kind` stands for the id of the target's object of this type, `@user` for a UserRef of the account,
`@mark` and `@address` for its marker text and its address.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from graphql import GraphQLField, get_named_type, is_leaf_type

from tests.support.schema.access_matrix import is_guarded
from tests.support.schema.printed_schema import SDL
from tests.support.targets.target_objects import TargetObjects

ALLOWED, REFUSED = "allowed", "refused"
REFUSAL_CODES = {"FORBIDDEN", "NOT_FOUND"}
FOREIGN_CURSOR_MESSAGE = "The cursor is a position in the events of another user."  # a refusal, too
QUERIES = {
    "address": "address(by: {id: @Address}) { address }",
    "addressTrace": "addressTrace(address: @temporary) { stage output record { id } }",
    "addresses": "addresses(filter: {user: @user}) { nodes { address } }",
    "auditLog": "auditLog(filter: {targetId: @User}) { nodes { reason } }",
    "apiKeys": "apiKeys(first: 100) { nodes { name } }",
    "legalHold": "legalHold(by: {id: @LegalHold}) { username }",
    "legalHolds": "legalHolds(filter: {user: @user}) { nodes { username } }",
    "securityLog": "securityLog(filter: {user: @user}) { nodes { detail } }",
    "bccRules": "bccRules(first: 100) { nodes { bccTo } }",
    "changes": "changes(user: @user, after: @cursor, first: 100) { events { user { id } "
    "... on MailboxChange { mailboxId path } } }",
    "changes position": "changes(after: @cursor, first: 100) { events { user { id } "
    "... on MailboxChange { mailboxId path } } }",
    "connectorRun": "connectorRun(by: {id: @ConnectorRun}) { error }",
    "connectors": "connectors(filter: {users: @users}) { nodes { name } }",
    "deletedUser": "deletedUser(by: {id: @deleted}) { userId username }",
    "deletedUsers": "deletedUsers(filter: {query: @gone}) { nodes { userId } }",
    "dkimKey": "dkimKey(by: {id: @DkimKey}) { id }",
    "dkimKeys": "dkimKeys(first: 100) { nodes { id } }",
    "domain": "domain(by: {id: @Domain}) { id }",
    "aliasDomain": "aliasDomain(by: {id: @AliasDomain}) { alias }",
    "aliasDomains": 'aliasDomains(filter: {query: "@mark"}) { nodes { alias } }',
    "domains": "domains(first: 100) { nodes { id } }",
    "filter": "filter(by: {id: @Filter}) { name }",
    "filterTest": "filterTest(user: @user, message: {raw: @raw}) { filter { name } }",
    "filters": "filters(filter: {user: @user}) { nodes { name } }",
    "keyValue": 'keyValue(by: {name: {user: @user, key: "@mark"}}) { value }',
    "keyValues": "keyValues(filter: {user: @user}) { nodes { value } }",
    "mailbox": 'mailbox(user: @user, by: {path: "@mark"}) { path }',
    "mailbox id": "mailbox(by: {id: @Mailbox}) { path }",
    "mailboxes": "mailboxes(users: @users) { nodes { path } }",
    "message": "message(by: {id: @Message}) { id }",
    "message path": 'message(user: @user, by: {uid: {mailbox: {path: "INBOX"}, uid: @uid}}) { id }',
    "message seen": "message(by: {id: @Message}, markAsSeen: true) { id }",
    "message uid": "message(by: {uid: {mailbox: {id: @inbox}, uid: @uid}}) { id }",
    "deliveryTrace": "deliveryTrace(filter: {recipient: @address}) { nodes { detail } }",
    "messages": "messages(users: @users) { nodes { id } }",
    "node": "node(id: @User) { id }",
    "nodes": "nodes(ids: [@User, @Mailbox, @Message]) { id }",
    "quarantine": "quarantine(filter: {users: @users}) { nodes { id } }",
    "queue": "queue(filter: {users: @users}) { nodes { queueId } }",
    "rateLimitHolds": "rateLimitHolds(filter: {users: @users}) { nodes { id } }",
    "rateLimits": "rateLimits(filter: {users: @users}) { nodes { id } }",
    "resource": "resource(by: {id: @Resource}) { id }",
    "resources": 'resources(filter: {query: "@mark"}) { nodes { id } }',
    "searchDiagnostics": 'searchDiagnostics { expansion(users: @users, filter: {query: "@mark"}) '
    "{ terms } }",
    "searchDiagnostics hits": 'searchDiagnostics { hits(users: @users, filter: {query: "@mark"}) '
    "{ nodes { message { id } } } }",
    "senderRules": "senderRules(filter: {user: @user}) { nodes { pattern } }",
    "sessions": "sessions(filter: {users: @users}) { nodes { id } }",
    "sessionSummaries": "sessionSummaries(filter: {users: @users}) { nodes { user { id } } }",
    "sieveTest": 'sieveTest(user: @user, content: "keep;", message: {raw: @raw}) '
    "{ actions trace { __typename } }",
    "sieveTest stored": 'sieveTest(user: @user, content: "keep;", '
    "message: {stored: {id: @Message}}) { actions trace { __typename } }",
    "statistics": 'statistics(names: [SIGN_INS], since: "2030-01-01T00:00:00Z", '
    'before: "2030-01-01T01:00:00Z", domain: {id: @Domain}) { series { name } }',
    "submission": "submission(by: {id: @Submission}) { queueId }",
    "task": "task(by: {id: @Task}) { id }",
    "tasks": "tasks(first: 100) { nodes { id } }",
    "thread": "thread(by: {id: @Thread}) { id }",
    "user": "user(by: @user) { RECORD }",
    "userAffinity": "userAffinity(user: @user) { user { id } }",
    "userAffinities": "userAffinities(filter: {users: @users}) { nodes { user { id } } }",
    "users": "users(filter: {patterns: [@username]}) { nodes { id } }",
    "webhooks": "webhooks(filter: {user: @user}) { nodes { url } }",
}
SUBSCRIPTIONS = {
    "changes": "changes(user: @user, after: @cursor) { events { "
    "... on MailboxChange { mailboxId path } } }",
    "changes position": "changes(after: @cursor) { events { "
    "... on MailboxChange { mailboxId path } } }",
    "connectorRunProgress": "connectorRunProgress(connectorRun: {id: @ConnectorRun}) { error }",
    "mailboxCounters": "mailboxCounters(user: @user) { path }",
    "domainChanges": "domainChanges(domain: {name: @domain}, after: @domainCursor) "
    "{ events { ... on UserChange { nodeId } } }",
    "mailboxChanges": "mailboxChanges(mailbox: {id: @Mailbox}, after: @cursor) { events { "
    "... on MailboxChange { path } ... on MessageChange { messageId } } }",
    "queueEntryChanged": "queueEntryChanged(filter: {users: @users}) { queueId }",
    "savedSearchCounters": "savedSearchCounters(savedSearch: {id: @SavedSearch}) { name }",
    "submissionProgress": "submissionProgress(submission: {id: @Submission}) { queueId }",
    "taskProgress": "taskProgress(task: {id: @Task}) { id }",
    "notifications": "notifications(after: @cursor) { message { id } }",
    "userChanges": "userChanges(filter: {domain: {name: @domain}}, after: @domainCursor) "
    "{ events { ... on UserChange { nodeId } } }",
}
USER_FIELD_SELECTIONS = {  # with the arguments that they need
    "contactSuggestions": 'contactSuggestions(query: "@mark") { id }',
    "appPasswords": "appPasswords { nodes { id } }",
    "oauthGrants": "oauthGrants { nodes { id } }",
    "identityLink": "identityLink { subject }",
    "keyValue": 'keyValue(key: "@mark") { id }',
    "mailbox": 'mailbox(by: {path: "@mark"}) { id }',
    "sieveScript": 'sieveScript(name: "@mark") { id }',
}
CONTENT_DOCUMENTS = {  # by type; FIELD stands for each field outside of the record
    "DeletedMessage contents": "node(id: @DeletedMessage) { ... on DeletedMessage { FIELD } }",
    "File contents": "node(id: @File) { ... on File { FIELD } }",
    "Message contents": "message(by: {id: @Message}) { FIELD }",
    "MessageImap contents": "message(by: {id: @Message}) { imap { FIELD } }",
    "QuarantineItem contents": "node(id: @QuarantineItem) { ... on QuarantineItem { FIELD } }",
    "Thread contents": "thread(by: {id: @Thread}) { FIELD }",
}
FIELD_ARGUMENTS = {
    "binaryPart": '(section: "1")',
    "bodyPart": '(section: "1")',
    "header": '(name: "To")',
}
# Their results contain neither an id nor the marker of the target.
FIELDS_WITHOUT_EVIDENCE = {
    "Query.statistics",
    "Query.sieveTest", "Query.sieveTest stored", "User.address", "User.serviceSettings",
    "User.limits", "User.mailboxTotals", "User.maxNewQuota", "User.passwordPolicy",
    "User.recoveryCodesLeft", "User.sharedMailboxes", "User.spam", "User.storageFormat",
    "User.twoFactors",
}  # fmt: skip
# Their results are not empty if the target is refused.
NEVER_EMPTY = {
    "Query.addressTrace", "Query.apiKeys", "Query.bccRules", "Query.dkimKeys", "Query.domains",
    "Query.nodes", "Query.tasks",
}  # fmt: skip


def plain_fields(type_name: str) -> Iterator[str]:
    """The fields of a type that are values, take no arguments and are not guarded."""
    parent: Any = SDL.type_map[type_name]
    yield from (name for name, field in parent.fields.items() if is_plain(field))


def is_plain(field: GraphQLField) -> bool:
    """True if the field is a value, takes no arguments and is not guarded."""
    return is_leaf_type(get_named_type(field.type)) and not field.args and not is_guarded(field)


def field_selection(field: GraphQLField) -> str:
    """The selection of ids of a field, or of its values if it has no ids."""
    type_: Any = get_named_type(field.type)
    if is_leaf_type(type_):
        return ""
    if "nodes" in type_.fields:
        return f"{{ nodes {field_selection(type_.fields['nodes'])} }}"
    if "id" in type_.fields:
        return "{ id }"
    if possible := getattr(type_, "types", ()):
        return f"{{ ... on {possible[0].name} {{ __typename }} }}"
    plain_names = (name for name, inner_field in type_.fields.items() if is_plain(inner_field))
    selections = [*plain_names] or [
        f"{name} {field_selection(inner_field)}" for name, inner_field in type_.fields.items()
    ]
    return f"{{ {' '.join(selections)} }}"


def query_document(
    name: str, target: TargetObjects, records: dict[str, str]
) -> tuple[str, dict[str, str]]:
    """The document that tries this decision, and its variables."""
    type_name, _, field = name.partition(".")
    parent: Any = SDL.type_map.get(type_name)
    if name in CONTENT_DOCUMENTS:
        text = _contents_selection(name, records[name.split(maxsplit=1)[0]].split())
    elif type_name == "Subscription":
        text = SUBSCRIPTIONS[field]
    elif type_name == "Query":
        text = QUERIES[field].replace("RECORD", " ".join(plain_fields("User")))
    elif type_name == "User":
        field_text = (
            USER_FIELD_SELECTIONS.get(field) or f"{field} {field_selection(parent.fields[field])}"
        )
        text = f"user(by: @user) {{ {field_text} }}"
    else:  # "node Kind"
        text = f"node(id: @{name.removeprefix('node ')}) {{ id }}"
    return _with_variables("subscription" if type_name == "Subscription" else "query", text, target)


def _with_variables(
    operation_type: str, text: str, target: TargetObjects
) -> tuple[str, dict[str, str]]:
    """Use variables for the target's objects, so that the document is the same for all targets."""
    text = text.replace("@users", "{ids: [@User]}").replace("@username", "@login")
    text = re.sub(r"@user\b", "{id: @User}", text).replace('"@mark"', "@mark")
    names = sorted(set(re.findall(r"@(\w+)", text)))
    declarations = ", ".join(f"${name}: {_variable_type(name)}" for name in names)
    head = f"{operation_type} ({declarations})" if names else operation_type
    text = f"{head} {{ {text} }}".replace("@", "$")
    return text, {name: target.value(name) for name in names}


def _variable_type(name: str) -> str:
    if name in ("cursor", "domainCursor"):
        return "Cursor!"
    if name == "uid":
        return "BigInt!"
    return "ID!" if name[0].isupper() or name in ("deleted", "inbox") else "String!"


def fields_beyond_record(type_name: str, records: list[str]) -> list[str]:
    """The fields of a type that its record doesn't have."""
    parent: Any = SDL.type_map[type_name]
    return [name for name in parent.fields if name not in records]


def _contents_selection(name: str, records: list[str]) -> str:
    type_name = name.split(maxsplit=1)[0]
    parent: Any = SDL.type_map[type_name]
    selections = []
    for nth, field in enumerate(fields_beyond_record(type_name, records)):
        field_text = (
            f"{field}{FIELD_ARGUMENTS.get(field, '')} {field_selection(parent.fields[field])}"
        )
        selections.append(f"f{nth}: {CONTENT_DOCUMENTS[name].replace('FIELD', field_text)}")
    return " ".join(selections)


def is_empty(value: Any) -> bool:
    """True if it has no value but null, zero, false, and empty lists and texts."""
    if isinstance(value, dict):
        return all(is_empty(member) for member in value.values())
    if isinstance(value, list):
        return all(is_empty(member) for member in value)
    return not value


def query_verdict(name: str, target: TargetObjects, response: Any, body: str) -> str:
    """Allowed if data of the target came, refused if none came, else a description."""
    errors: list[Any] = response.get("errors") or []
    codes = [
        "NOT_FOUND" if error["message"] == FOREIGN_CURSOR_MESSAGE else error["extensions"]["code"]
        for error in errors
    ]
    if set(codes) - REFUSAL_CODES:
        return f"error: {errors[0]['message']}"
    data = response.get("data")
    data_text = json.dumps(data)
    has_evidence = any(word in data_text for word in target.evidence_words())
    if name in CONTENT_DOCUMENTS:
        if has_evidence and not codes:
            return ALLOWED
        return (
            REFUSED
            if is_empty(data) and target.marker not in body
            else f"partly: {data_text[:300]}"
        )
    if has_evidence or (name in FIELDS_WITHOUT_EVIDENCE and not is_empty(data)):
        return ALLOWED if not codes else f"data and errors: {codes}"
    if target.marker in body:
        return f"refused, but with data: {body[:300]}"
    return REFUSED if is_empty(data) or name in NEVER_EMPTY else f"unclear: {data_text[:300]}"
