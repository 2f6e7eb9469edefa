"""Naming and shape rules of the schema, and the violations that the rules detect."""

from typing import Any

import pytest
from graphql import build_schema, parse, print_schema

from graph.execution.documents.cost_limits import Cost, cost_directive_or_none
from graph.schema import schema
from tests.support.schema.naming_rules import RULES, NamingRule, own_types
from tests.support.schema.node_field_exceptions import NODE_FIELD_EXCEPTIONS
from tests.support.schema.printed_schema import SDL
from tests.support.servers.small_schema_server import make_schema

ESTABLISHED_NAME = "the name in the outline of the schema and in other mail systems"
NO_OBJECT = "an action without an object, since there is only one"
FACTOR_IS_NO_OBJECT = "a second factor has no type: it is only on or off"
OLD_AND_NEW_PLACE = "the old and new mailbox and UID of each message"
PART_OF_USER = "acts on a part of a User that has no type"
ENTRY_OF_STORE = "acts on a KeyValueEntry by its key"
ALWAYS_IN_MAILBOX = "only a deleted message can be without it: a Message needs no check of null"
PART_OF_MAILBOX = "acts on a part of a Mailbox that has no type"
DIFFERENT_TOTALS = "the steps of a task, and the services that were checked"
CONNECTOR_FIELDS = (*("autoMapFolders", "mirrorDeletes", "removeDuplicates", "virusCheck"),)
EXCEPTIONS: dict[str, dict[str, str]] = {  # by rule: the exceptions with their reasons
    "find_wrong_suffix": {
        "ContentType": "the header field Content-Type",
        "ChangeType": "the type of an event of an account, by which programs select events",
        "EventType": "the type of an event, by which programs select events",
        "WebhookEventType": "the type of an event, by which webhooks select events",
        "Filter": "a rule for mail, not an input of a search",
        "FileContent": "the content of a file, inside an input",
        "ImportSource": "a choice of sources, inside an input",
        "MessageUid": "a reference by folder and UID",
        "OauthGrantType": "the grant type of RFC 6749",
        "MutationOptions": "part of every input",
        "SpecialMailboxNames": "names by special use, inside an input",
    },
    "find_repeated_type_name": {
        "Address.address": "the address itself, which has no other name",
        "Message.messageIdHeader": "the header field Message-ID, not a global ID",
    },
    "find_wrong_mutation_order": {
        "Mutation.serverStop": "acts on all processes of a node, which are no object",
        "Mutation.authCacheFlush": "operators know the cache of credentials by this name",
        **dict.fromkeys(
            (
                "Mutation.cacheClean",
                "Mutation.cacheFlush",
                "Mutation.cacheRemove",
                "Mutation.cacheRescan",
                "Mutation.cacheUnpack",
            ),
            ESTABLISHED_NAME,
        ),
        "Mutation.keyValueDelete": ENTRY_OF_STORE,
        "Mutation.keyValueIncrement": ENTRY_OF_STORE,
        "Mutation.keyValueSet": ENTRY_OF_STORE,
        "Mutation.mailboxAnnotationDelete": PART_OF_MAILBOX,
        "Mutation.mailboxAnnotationSet": PART_OF_MAILBOX,
        "Mutation.mailboxStateSet": PART_OF_MAILBOX,
        "Mutation.messageTierMove": ESTABLISHED_NAME,
        "Mutation.metricsReset": ESTABLISHED_NAME,
        "Mutation.recoveryCodesCreate": "creates ten codes, which are texts",
        "Mutation.searchIndexBuild": ESTABLISHED_NAME,
        "Mutation.searchIndexOptimize": ESTABLISHED_NAME,
        "Mutation.searchIndexRebuild": ESTABLISHED_NAME,
        "Mutation.userPasswordReset": PART_OF_USER,
        "Mutation.userPermissionsSet": PART_OF_USER,
        "Mutation.userPreferencesReset": PART_OF_USER,
        "Mutation.userRoleSet": PART_OF_USER,
        "Mutation.userSyncReset": PART_OF_USER,
        "Mutation.userUsageReset": PART_OF_USER,
        "Mutation.oauthClientSecretRotate": "acts on a part of an OauthClient that has no type",
        "Mutation.webhookSecretRotate": "acts on a part of a Webhook that has no type",
        "Mutation.draftSave": "a draft is a Message with the draft flag",
        "Mutation.draftSend": "a draft is a Message with the draft flag",
        "Mutation.temporaryAddressCreate": ESTABLISHED_NAME,
        "Mutation.authenticate": NO_OBJECT,
        "Mutation.certificateRenew": "what is done to certificates is called so everywhere",
        "Mutation.externalTwoFactorDisable": ESTABLISHED_NAME,
        "Mutation.externalTwoFactorEnable": ESTABLISHED_NAME,
        "Mutation.mailImport": ESTABLISHED_NAME,
        "Mutation.addressesCreate": "creates many addresses, where addressCreate creates one",
        "Mutation.addressesCreateFromFile": "creates many addresses, where addressCreate does one",
        "Mutation.filtersCreate": "creates many filters, where filterCreate creates one",
        "Mutation.filtersCreateFromFile": "creates many filters, where filterCreate creates one",
        "Mutation.usersCreate": "creates many users, where userCreate creates one",
        "Mutation.usersCreateFromFile": "creates many users, where userCreate creates one",
        "Mutation.quarantineDelete": ESTABLISHED_NAME,
        "Mutation.quarantineRelease": ESTABLISHED_NAME,
        "Mutation.queueDelete": ESTABLISHED_NAME,
        "Mutation.queueFlush": ESTABLISHED_NAME,
        "Mutation.queueHold": ESTABLISHED_NAME,
        "Mutation.queueRelease": ESTABLISHED_NAME,
        "Mutation.quotaRecalculate": ESTABLISHED_NAME,
        "Mutation.routeTest": ESTABLISHED_NAME,
        "Mutation.totpVerify": FACTOR_IS_NO_OBJECT,
        "Mutation.totpDisable": FACTOR_IS_NO_OBJECT,
        "Mutation.totpEnable": FACTOR_IS_NO_OBJECT,
        "Mutation.totpImport": FACTOR_IS_NO_OBJECT,
        "Mutation.totpSetup": FACTOR_IS_NO_OBJECT,
        "Mutation.undo": NO_OBJECT,
        "Mutation.webauthnChallenge": ESTABLISHED_NAME,
        "Mutation.webauthnVerify": FACTOR_IS_NO_OBJECT,
        "Mutation.webauthnDelete": ESTABLISHED_NAME,
        "Mutation.webauthnRegister": ESTABLISHED_NAME,
    },
    "find_wrong_mutation_shape": {},
    "find_wrong_payload_fields": {
        "CacheUnpackPayload.mailboxes": "mailboxes of an archive, which have no Mailbox",
        "ConnectorTestPayload.stages": "a part of the payload",
        "IdentityProviderTestPayload.steps": "a part of the payload",
        "DeletedMessageRestorePayload.restored": OLD_AND_NEW_PLACE,
        "MessageCopyPayload.copied": OLD_AND_NEW_PLACE,
        "MessageMovePayload.moved": OLD_AND_NEW_PLACE,
    },
    "find_unclear_booleans": {
        "Health.ok": "the usual name in reports of health",
        "Address.wildcard": ESTABLISHED_NAME,
        "AddressFilter.wildcard": ESTABLISHED_NAME,
        "Mailbox.annotations(prependPrefix:)": "a verb of reading",
        **dict.fromkeys(
            ("FilterAction.delete", "FilterAction.flag", "FilterAction.stop"), ESTABLISHED_NAME
        ),
        **dict.fromkeys(("FilterActionInput.flag", "FilterActionInput.stop"), ESTABLISHED_NAME),
        "Certificate.acme": ESTABLISHED_NAME,
        "CertificateSetInput.acme": ESTABLISHED_NAME,
        "BanPolicy.banTimeIncrement": ESTABLISHED_NAME,
        "BanPolicyPatch.banTimeIncrement": ESTABLISHED_NAME,
        "FilterTestResult.matches": ESTABLISHED_NAME,
        "RouteTestPayload.ok": ESTABLISHED_NAME,
        "Address.sendAs": ESTABLISHED_NAME,
        "AddressCreateInput.sendAs": ESTABLISHED_NAME,
        "AddressPatch.sendAs": ESTABLISHED_NAME,
        "NewAddressInput.sendAs": ESTABLISHED_NAME,
        "AppPasswordCreateInput.generateMobileconfig": ESTABLISHED_NAME,
        **dict.fromkeys(
            (
                f"{kind}.{name}"
                for kind in ("Connector", "ConnectorCreateInput", "ConnectorPatch")
                for name in CONNECTOR_FIELDS
            ),
            ESTABLISHED_NAME,
        ),
        **dict.fromkeys(
            (
                f"{kind}.{name}"
                for kind in ("ImportRemoteInput", "ImportRemoteAccountsInput")
                for name in ("autoMapFolders", "removeDuplicates", "virusCheck")
            ),
            ESTABLISHED_NAME,
        ),
        "Connector.applyFilters": ESTABLISHED_NAME,
        "Connector.deleteSource": ESTABLISHED_NAME,
        "Connector.skipCrossDuplicates": ESTABLISHED_NAME,
        "ConnectorTestPayload.ok": ESTABLISHED_NAME,
        "ConnectorTestStage.ok": ESTABLISHED_NAME,
        "ConnectorRun.dryRun": ESTABLISHED_NAME,
        "ConnectorStartInput.dryRun": ESTABLISHED_NAME,
        "Domain.backupMx": ESTABLISHED_NAME,
        "Domain.relayAllRecipients": ESTABLISHED_NAME,
        "DomainCreateInput.backupMx": ESTABLISHED_NAME,
        "DomainCreateInput.relayAllRecipients": ESTABLISHED_NAME,
        "DomainPatch.backupMx": ESTABLISHED_NAME,
        "DomainPatch.relayAllRecipients": ESTABLISHED_NAME,
        "DomainDeleteInput.cascade": ESTABLISHED_NAME,
        "DomainFilter.backupMx": ESTABLISHED_NAME,
        "Mailbox.encryptMessages": ESTABLISHED_NAME,
        "MailboxRenameInput.renameSubscriptions": ESTABLISHED_NAME,
        "SieveScriptSetInput.activate": ESTABLISHED_NAME,
        "MailingList.unsubscribeOneClick": "the wording of the header field List-Unsubscribe-Post",
        "Message.html(remoteImages:)": "requests them",
        "MessageDeduplicateInput.byMessageIdHeader": ESTABLISHED_NAME,
        "PushChannel.passPriority": ESTABLISHED_NAME,
        "PushChannelSetInput.passPriority": ESTABLISHED_NAME,
        "QuarantineFilter.virus": ESTABLISHED_NAME,
        "UserQuarantineFilter.virus": ESTABLISHED_NAME,
        "QueueDeleteInput.notifySender": ESTABLISHED_NAME,
        "QuarantineItem.virus": ESTABLISHED_NAME,
        "SearchIndexBuildInput.background": "requests a task",
        "SessionDrainInput.terminate": ESTABLISHED_NAME,
        "SessionTerminateInput.revokeTokens": ESTABLISHED_NAME,
        "User.encryptMessages": ESTABLISHED_NAME,
        "RelayHost.tls": ESTABLISHED_NAME,
        "RelayHostCreateInput.tls": ESTABLISHED_NAME,
        "RelayHostPatch.tls": ESTABLISHED_NAME,
        "Transport.lookupMx": ESTABLISHED_NAME,
        "TransportCreateInput.lookupMx": ESTABLISHED_NAME,
        "TransportPatch.lookupMx": ESTABLISHED_NAME,
        "User.requireInboundTls": ESTABLISHED_NAME,
        "User.requireOutboundTls": ESTABLISHED_NAME,
        "User.uploadSentMessages": ESTABLISHED_NAME,
        "User.webmailAccess": ESTABLISHED_NAME,
        "NewUserInput.addTagsToAddress": ESTABLISHED_NAME,
        "UserCreateInput.addTagsToAddress": ESTABLISHED_NAME,
        "AppPasswordCreateInput.hashedPassword": ESTABLISHED_NAME,
        "NewUserInput.hashedPassword": ESTABLISHED_NAME,
        "UserCreateInput.hashedPassword": ESTABLISHED_NAME,
        "NewUserInput.uploadSentMessages": ESTABLISHED_NAME,
        "UserCreateInput.uploadSentMessages": ESTABLISHED_NAME,
        "NewUserInput.webmailAccess": ESTABLISHED_NAME,
        "UserCreateInput.webmailAccess": ESTABLISHED_NAME,
        "UserPatch.hashedPassword": ESTABLISHED_NAME,
        "UserPatch.uploadSentMessages": ESTABLISHED_NAME,
        "UserPatch.webmailAccess": ESTABLISHED_NAME,
    },
    "find_wrong_time_names": {
        "Query.statistics(since:)": "a range, named as in filters",
        "Query.statistics(before:)": "a range, named as in filters",
        "AttachedMessage.date": "the header field Date",
        "DeletionPeriodInput.before": "a bound, as in filters",
        "DeletionPeriodInput.since": "a bound, as in filters",
        "AuditLogFilter.before": ESTABLISHED_NAME,
        "AuditLogFilter.since": ESTABLISHED_NAME,
        "SecurityLogFilter.before": ESTABLISHED_NAME,
        "SecurityLogFilter.since": ESTABLISHED_NAME,
        "LegalHoldAccessFilter.before": "named as in AuditLogFilter",
        "LegalHoldAccessFilter.since": "named as in AuditLogFilter",
        "LogFilter.before": ESTABLISHED_NAME,
        "LogFilter.since": ESTABLISHED_NAME,
        "MailSummary.date": "the header field Date",
        "DeliveryTraceFilter.before": "named as in SecurityLogFilter",
        "DeliveryTraceFilter.since": "named as in SecurityLogFilter",
        "QuarantineFilter.since": ESTABLISHED_NAME,
        "UserQuarantineFilter.since": ESTABLISHED_NAME,
        "QueueFilter.before": ESTABLISHED_NAME,
        "QueueFilter.since": ESTABLISHED_NAME,
        "DraftFileLinkInput.expiresAt": "a time, or a duration until then",
        "FileAttachmentInput.expiresAt": "a time, or a duration until then",
        "FileShareCreateInput.expiresAt": "a time, or a duration until then",
    },
    "find_bare_ids": {
        "AuditLogFilter.targetId": "an object of any type, which can be deleted",
        "Query.node(id:)": "the specification of Relay",
        "Query.nodes(ids:)": "the specification of Relay",
    },
    "find_unmergeable_fields": dict.fromkeys(
        (
            "DeletedMessage.mailbox",
            "DeletedMessage.thread",
            "Message.mailbox",
            "Message.thread",
        ),
        ALWAYS_IN_MAILBOX,
    ),
    "find_different_node_fields": NODE_FIELD_EXCEPTIONS,
    "find_mixed_counts": {
        **dict.fromkeys(("HealthLogEntry.totalCount", "Task.totalCount"), DIFFERENT_TOTALS),
    },
    "find_public_root_fields": {
        "Mutation.authenticate": "the sign-in itself",
        "Mutation.passwordVerify": "the password that is checked is the credential",
        "Mutation.accessTokenRevoke": "signing out with an ended token is no error",
        "Mutation.totpVerify": "the user has not signed in yet; all others need a token",
        "Mutation.webauthnChallenge": "the user has not signed in yet; others need a token",
        "Mutation.webauthnVerify": "the user has not signed in yet; others need a token",
        "Query.health": "monitoring has no credential; `checks` needs the role ADMIN",
        "Query.viewer": "null for an anonymous client",
    },
}

INVALID_SCHEMA = '''
directive @auth(role: String = null) on FIELD_DEFINITION
"""d"""
scalar DateTime
"""d"""
enum Colour_Enum { """d""" red }
"""d"""
interface Timed { """d""" lastSeen: DateTime """d""" flat: Int }
type User implements Timed {
  lastSeen: DateTime
  flat: Int
  """d""" userName: String
  """d""" usernames("d" Sort: Int = null): [String]
  """d""" locked: Boolean
  """d""" isActive: Boolean
  """d""" active: Boolean
  """d""" hasMail: Boolean
  """d""" old: Int @deprecated(reason: "not needed")
  """d""" older: Int @deprecated(reason: "use `old`")
  """d""" oldest: Int @deprecated(reason: "use `flat`")
  """d""" friends("d" first: Int): UserConnection
}
"""d"""
type UserConnection { """d""" edges: [UserEdge] """d""" nodes: [User!]! }
"""d"""
type UserEdge { """d""" cursor: Int """d""" node: User! }
"""d"""
type Query {
  """d""" getUsers: User @auth(role: "USER")
  """d""" user("d" id: ID): User @auth(role: "PUBLIC")
  """d""" lists: Int
}
"""d"""
type Mutation {
  """d""" createUser("d" input: UserCreate!): Boolean @auth(role: "USER")
  """d""" userLock(input: UserLockInput, "d" now: Boolean): UserPayload! @auth
  """d""" userRemove(input: UserRemoveInput!): UserUpdatePayload! @auth(role: "USER")
  """d""" userUpdate(input: UserUpdateInput!): UserUpdatePayload @auth(role: "USER")
}
"""d"""
interface MutationPayload { """d""" errors: [String!]! }
"""d"""
type UserPayload {
  """d""" change: Change """d""" user: User """d""" users: [User!]! """d""" person: User
}
"""d"""
type UserUpdatePayload implements MutationPayload { """d""" errors: [String!]! }
"""d"""
interface Change { """d""" number: Int! }
"""d"""
type UserChange implements Change { """d""" number: Int! """d""" place: ID! """d""" path: String }
"""d"""
type Resync implements Change { """d""" number: Int! """d""" place: ID """d""" path: String }
"""d"""
type Room { """d""" mailCount: Int }
"""d"""
type House { """d""" mailCount: [Float!]! """d""" node: Node }
"""d"""
interface Node { """d""" id: ID! }
"""d"""
interface Summary implements Node { """d""" id: ID! }
"""d"""
type Stored implements Summary & Node { """d""" id: ID! """d""" place: ID! """d""" path: String }
"""d"""
type Removed implements Summary & Node {
  """d""" id: ID! """d""" place: ID """d""" path: String """d""" colour: Colour_Enum
}
"""d"""
type Office implements Node {
  """d""" id: ID! """d""" place: [ID!] """d""" path: Int """d""" colour: Shade
}
"""d"""
enum Shade { """d""" DARK }
"""d"""
input UserCreate { """d""" name: String = null }
"""d"""
input UserLockInput { """d""" validateOnly: Boolean """d""" until: Boolean """d""" lock: Int }
"""d"""
input UserRemoveInput { """d""" name: String! }
"""d"""
input UserUpdateInput { """d""" name: String! """d""" ids: [ID!] }
"""d"""
input UserRef { """d""" id: ID! }
'''
EXPECTED_VIOLATIONS = {  # by rule: the violations in INVALID_SCHEMA
    "find_wrong_descriptions": {
        "@auth",
        "@auth(role:)",
        "Mutation.createUser(input:)",
        "User",
        "User.lastSeen",
        "User.flat",
    },
    "find_wrong_case": {"Colour_Enum", "Colour_Enum.red", "User.usernames(Sort:)"},
    "find_wrong_suffix": {"Colour_Enum", "UserCreate"},
    "find_repeated_type_name": {"User.userName"},
    "find_verbs_of_reading": {"Query.getUsers"},
    "find_wrong_mutation_order": {"Mutation.createUser", "Mutation.userLock"},
    "find_wrong_mutation_shape": {
        "Mutation.createUser",
        "Mutation.createUser(input:)",
        "Mutation.userLock",
        "Mutation.userLock(input:)",
        "Mutation.userRemove",
        "UserPayload",
    },
    "find_wrong_payload_fields": {"UserPayload.users", "UserPayload.person"},
    "find_unclear_booleans": {
        "Mutation.createUser",
        "User.locked",
        "User.isActive",
        "Mutation.userLock(now:)",
        "UserLockInput.until",
    },
    "find_wrong_time_names": {"Timed.lastSeen"},
    "find_wrong_connections": {"UserConnection", "UserEdge", "User.friends"},
    "find_unmergeable_fields": {
        "UserChange.place",
        "Resync.place",
        "Stored.place",
        "Removed.place",
    },
    "find_different_node_fields": {
        f"{name}.{field}" for name in ("Stored", "Removed", "Office") for field in ("place", "path")
    },
    "find_mixed_counts": {"Room.mailCount", "House.mailCount"},
    "find_bare_ids": {"Query.user(id:)", "UserUpdateInput.ids"},
    "find_null_defaults": {"@auth(role:)", "User.usernames(Sort:)", "UserCreate.name"},
    "find_unreplaced_deprecations": {"User.old", "User.older"},
    "find_unguarded_root_fields": {"Query.lists", "Mutation.userLock"},
    "find_public_root_fields": {"Query.user"},
}


def test_every_rule_has_expected_violations() -> None:
    assert set(EXPECTED_VIOLATIONS) == {rule.__name__ for rule in RULES}
    assert set(EXCEPTIONS) <= set(EXPECTED_VIOLATIONS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_schema_follows_naming_rule(rule: NamingRule) -> None:
    exceptions = EXCEPTIONS.get(rule.__name__, {})
    violations = set(rule(SDL))
    assert violations - set(exceptions) == set(), rule.__doc__
    assert set(exceptions) - violations == set(), "exceptions that follow the rule: remove them"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_naming_rule_detects_violations(rule: NamingRule) -> None:
    assert set(rule(build_schema(INVALID_SCHEMA))) == EXPECTED_VIOLATIONS[rule.__name__]


def test_printed_schema_is_complete_and_sorted() -> None:
    assert print_schema(build_schema(print_schema(SDL))) == print_schema(SDL)
    kinds = [kind.name for kind in own_types(SDL) if kind.ast_node]
    assert kinds == sorted(kinds)
    for kind in own_types(SDL):
        names = list(getattr(kind, "fields", getattr(kind, "values", ())))
        assert names == sorted(names), kind.name


def test_cost_directives_are_printed() -> None:
    small_schema = make_schema()
    for tested_schema in (schema, small_schema):
        definitions: list[Any] = [*parse(tested_schema.as_str()).definitions]
        printed = {
            (kind.name.value, field.name.value): [d.name.value for d in field.directives or ()]
            for kind in definitions
            for field in getattr(kind, "fields", None) or ()
        }
        for kind in own_types(tested_schema._schema):  # noqa: SLF001
            for name, field in getattr(kind, "fields", {}).items():
                has_cost = hasattr(field, "args") and cost_directive_or_none(field) is not None
                assert has_cost is ("cost" in printed[kind.name, name]), f"{kind.name}.{name}"
    assert "dear: String! @cost(perItem: false, weight: 500)" in small_schema.as_str()
    query_type = small_schema._schema.query_type  # noqa: SLF001
    assert query_type is not None
    assert cost_directive_or_none(query_type.fields["chosen"]) == Cost(weight=2, per_item=True)
