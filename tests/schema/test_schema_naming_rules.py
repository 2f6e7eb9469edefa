"""Names and shapes of the schema, and that its rules find what breaks them."""

from typing import Any

import pytest
from graphql import build_schema, parse, print_schema

from graph.execution.documents.cost_limits import Cost, cost_directive
from graph.schema import schema
from tests.support.schema.naming_rules import RULES, Rule, own
from tests.support.schema.printed_schema import SDL
from tests.support.servers.small_schema_server import make_schema

OUTLINE = "what it is called in the outline of the schema, and in other mail systems"
ONE_ACT = "an act without an object: there is one of it"
FACTORS = "a factor is no object of ours: it is on, or it is not"
PART = "acts on a part of a User, which is no type of its own"
BOX_PART = "acts on a part of a Mailbox, which is no type of its own"
FORWARDS = "a list that is short, and read forwards only"
CONNECTOR = (*("autoMapFolders", "mirrorDeletes", "removeDuplicates", "virusCheck"),)
EXCEPTIONS: dict[str, dict[str, str]] = {  # by rule, what breaks it with a reason
    "suffixed": {
        "ContentType": "the header field Content-Type",
        "DateBound": "a way to say a time, inside a filter",
        "DateBoundFuture": "a way to say a time, inside an input",
        "Filter": "a rule for mail, and no input to find something by",
        "FileContent": "a way to say what is in a file, inside an input",
        "ImportSource": "a choice of sources, inside an input",
        "MessageChanges": "a patch for many, called so before patches were",
        "MessageUid": "a reference by folder and UID",
        "MutationOptions": "part of every input",
        "ReferenceAttachments": "a choice of attachments, inside inputs",
        "SpecialMailboxNames": "names by special use, inside an input",
    },
    "prefixed": {
        "Address.address": "the address itself: it has no other word",
        "Message.messageId": "the header field Message-ID, which is no id of ours",
    },
    "unordered": {
        "Mutation.accountExport": OUTLINE,
        "Mutation.accountImport": OUTLINE,
        "Mutation.actAs": ONE_ACT,
        "Mutation.addressCreateTemporary": OUTLINE,
        "Mutation.archiveRestore": OUTLINE,
        "Mutation.authCacheFlush": "what operators know the memory of credentials by",
        "Mutation.authenticate": ONE_ACT,
        "Mutation.certificateRenew": "what is done to certificates is called so everywhere",
        "Mutation.customTwoFactorDisable": OUTLINE,
        "Mutation.customTwoFactorEnable": OUTLINE,
        "Mutation.clientStateReset": OUTLINE,
        "Mutation.composeRequest": OUTLINE,
        "Mutation.mailImport": OUTLINE,
        "Mutation.usersCreate": "creates many users, where userCreate creates one",
        "Mutation.usersCreateFromFile": "creates many users, where userCreate creates one",
        "Mutation.mailboxMetadataSet": BOX_PART,
        "Mutation.mailboxMetadataUnset": BOX_PART,
        "Mutation.mailboxStateSet": BOX_PART,
        "Mutation.messageTierMove": OUTLINE,
        "Mutation.profileReset": OUTLINE,
        "Mutation.quarantineDelete": OUTLINE,
        "Mutation.quarantineNotificationSet": OUTLINE,
        "Mutation.quarantineRelease": OUTLINE,
        "Mutation.queueDelete": OUTLINE,
        "Mutation.queueFlush": OUTLINE,
        "Mutation.queueHold": OUTLINE,
        "Mutation.quotaRecalculate": OUTLINE,
        "Mutation.routeTest": OUTLINE,
        "Mutation.searchIndexBuild": OUTLINE,
        "Mutation.searchIndexOptimize": OUTLINE,
        "Mutation.searchIndexRebuild": OUTLINE,
        "Mutation.recoveryCodesCreate": "ten at once, and they are text",
        "Mutation.sessionKick": "a session is a connection: it is ended, and never read",
        "Mutation.totpCheck": FACTORS,
        "Mutation.totpDisable": FACTORS,
        "Mutation.totpEnable": FACTORS,
        "Mutation.totpImport": FACTORS,
        "Mutation.totpSetup": FACTORS,
        "Mutation.undo": ONE_ACT,
        "Mutation.userPermissionsSet": PART,
        "Mutation.userRoleSet": PART,
        "Mutation.webauthnChallenge": OUTLINE,
        "Mutation.webauthnCheck": FACTORS,
        "Mutation.webauthnDelete": OUTLINE,
        "Mutation.webauthnRegister": OUTLINE,
        "Mutation.webhookSecretRotate": "a part of a Webhook, which is no type of its own",
    },
    "misshapen": {
        "Mutation.addressDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.apiKeyDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.appPasswordDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.autoreplyDelete(input:)": OUTLINE,
        "Mutation.auditDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.senderRuleDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.bccRuleDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.recipientRewriteDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.dkimKeyActivate(input:)": "shares IdsInput with all that is done by id",
        "Mutation.certificateRenew(input:)": "shares IdsInput with all that is done by id",
        "Mutation.connectorCancel(input:)": "shares IdsInput with all that is done by id",
        "Mutation.connectorDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.relayHostDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.transportDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.tlsPolicyDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.webhookDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.webhookTest(input:)": "shares IdsInput with all that delete by id",
        "Mutation.pushChannelDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.pushChannelTest(input:)": "shares IdsInput with all that delete by id",
        "Mutation.quarantineDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.domainAliasDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.mailboxUnsubscribe(input:)": "shares the input of mailboxSubscribe",
        "Mutation.filterDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.identityDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.fileDelete(input:)": "shares IdsInput with all that delete by id",
        "Mutation.fileShareDelete(input:)": "shares IdsInput with all that delete by id",
    },
    "unclear": {
        **dict.fromkeys(("FilterAction.delete", "FilterAction.flag", "FilterAction.stop"), OUTLINE),
        **dict.fromkeys(("FilterActionInput.flag", "FilterActionInput.stop"), OUTLINE),
        "Certificate.acme": OUTLINE,
        "CertificateSetInput.acme": OUTLINE,
        "Query.certificates(altNames:)": OUTLINE,
        "FilterTestResult.matches": OUTLINE,
        "RouteTestPayload.ok": OUTLINE,
        "Address.isCatchAll": OUTLINE,
        "Address.isWildcard": OUTLINE,
        "Address.sendAs": OUTLINE,
        "AddressCreateInput.sendAs": OUTLINE,
        "AddressFilter.wildcard": OUTLINE,
        "AddressPatch.sendAs": OUTLINE,
        "AppPasswordCreateInput.generateMobileconfig": OUTLINE,
        "AuthenticateInput.token": "asks for one",
        "AuthenticatePayload.requirePasswordChange": OUTLINE,
        **dict.fromkeys(
            (
                f"{kind}.{name}"
                for kind in ("Connector", "ConnectorCreateInput", "ConnectorPatch")
                for name in CONNECTOR
            ),
            OUTLINE,
        ),
        "ImportRemoteInput.autoMapFolders": OUTLINE,
        "ImportRemoteInput.removeDuplicates": OUTLINE,
        "ImportRemoteInput.virusCheck": OUTLINE,
        "Connector.applyFilters": OUTLINE,
        "Connector.deleteSource": OUTLINE,
        "Connector.skipCrossDuplicates": OUTLINE,
        "ConnectorCheckPayload.ok": OUTLINE,
        "ConnectorCheckStage.ok": OUTLINE,
        "ConnectorRun.trial": "what the run is",
        "ConnectorRunInput.trial": "asks for one",
        "Domain.backupMx": OUTLINE,
        "Domain.relayAllRecipients": OUTLINE,
        "DomainCreateInput.backupMx": OUTLINE,
        "DomainCreateInput.relayAllRecipients": OUTLINE,
        "DomainPatch.backupMx": OUTLINE,
        "DomainPatch.relayAllRecipients": OUTLINE,
        "DomainDeleteInput.cascade": OUTLINE,
        "DomainFilter.backupMx": OUTLINE,
        "Mailbox.encryptMessages": OUTLINE,
        "Mailbox.metadata(prependPrefix:)": OUTLINE,
        "MailboxRenameInput.subscriptions": OUTLINE,
        "SieveScriptPutInput.activate": OUTLINE,
        "User.mailboxes(specialUse:)": OUTLINE,
        "ListInfo.unsubscribeOneClick": "the header field List-Unsubscribe-Post says it so",
        "Message.html(remoteImages:)": "asks for them",
        "MessageDeduplicateInput.byMessageId": OUTLINE,
        "MessageSendInput.isDraft": OUTLINE,
        "PushChannel.evaluatePriority": OUTLINE,
        "PushChannelSetInput.evaluatePriority": OUTLINE,
        "QuarantineFilter.virus": OUTLINE,
        "QueueDeleteInput.notifySender": OUTLINE,
        "QuarantineItem.virus": OUTLINE,
        "Query.keyValues(noValue:)": OUTLINE,
        "Query.keyValues(recurse:)": OUTLINE,
        "SearchHit.definite": OUTLINE,
        "SearchIndexBuildInput.queue": OUTLINE,
        "SessionKickInput.revokeTokens": OUTLINE,
        "User.encryptMessages": OUTLINE,
        "User.isRelayed": OUTLINE,
        "User.requirePasswordChange": OUTLINE,
        "RelayHost.tls": OUTLINE,
        "RelayHostCreateInput.tls": OUTLINE,
        "RelayHostUpdateInput.tls": OUTLINE,
        "Transport.lookupMx": OUTLINE,
        "TransportCreateInput.lookupMx": OUTLINE,
        "TransportUpdateInput.lookupMx": OUTLINE,
        "User.tlsEnforceIn": OUTLINE,
        "User.tlsEnforceOut": OUTLINE,
        "User.uploadSentMessages": OUTLINE,
        "User.webmailAccess": OUTLINE,
        "NewUserInput.addTagsToAddress": OUTLINE,
        "UserCreateInput.addTagsToAddress": OUTLINE,
        "NewUserInput.hashedPassword": OUTLINE,
        "UserCreateInput.hashedPassword": OUTLINE,
        "NewUserInput.tlsEnforceIn": OUTLINE,
        "UserCreateInput.tlsEnforceIn": OUTLINE,
        "NewUserInput.tlsEnforceOut": OUTLINE,
        "UserCreateInput.tlsEnforceOut": OUTLINE,
        "NewUserInput.uploadSentMessages": OUTLINE,
        "UserCreateInput.uploadSentMessages": OUTLINE,
        "NewUserInput.webmailAccess": OUTLINE,
        "UserCreateInput.webmailAccess": OUTLINE,
        "UserPatch.hashedPassword": OUTLINE,
        "UserPatch.tlsEnforceIn": OUTLINE,
        "UserPatch.tlsEnforceOut": OUTLINE,
        "UserPatch.uploadSentMessages": OUTLINE,
        "UserPatch.webmailAccess": OUTLINE,
    },
    "untimely": {
        "AttachedMessage.date": "the header field Date",
        "Audit.end": OUTLINE,
        "Audit.expires": OUTLINE,
        "Audit.start": OUTLINE,
        "AuditCreateInput.end": OUTLINE,
        "AuditCreateInput.expires": OUTLINE,
        "AuditCreateInput.start": OUTLINE,
        "AuditedMessage.date": "the header field Date",
        "ArchiveRestoreInput.end": OUTLINE,
        "ArchiveRestoreInput.start": OUTLINE,
        "ArchivedMessage.date": "the header field Date",
        "AuthLogFilter.before": OUTLINE,
        "AuthLogFilter.since": OUTLINE,
        "Query.adminLog(since:)": OUTLINE,
        "Query.adminLog(until:)": "the other end of since; before is a cursor there",
        "Message.date": "the header field Date",
        "Message.expires": OUTLINE,
        "MessageTraceFilter.before": "named as in AuthLogFilter",
        "MessageTraceFilter.since": "named as in AuthLogFilter",
        "MessageChanges.expires": OUTLINE,
        "MessageSendInput.sendTime": OUTLINE,
        "MessageSubmitInput.sendTime": OUTLINE,
        "QuarantineFilter.since": OUTLINE,
        "QueueFilter.since": OUTLINE,
        "SubmissionRescheduleInput.sendTime": OUTLINE,
        "Submission.sendTime": OUTLINE,
    },
    "unconnected": {
        "Query.mailboxes": FORWARDS,
        "Audit.accessLog": FORWARDS,
        "Audit.messages": OUTLINE,
        "Query.audits": FORWARDS,
        "Query.searchLookup": FORWARDS,
        "Query.tasks": FORWARDS,
        "Thread.messages": FORWARDS,
        "Webhook.deliveries": FORWARDS,
        "User.addresses": FORWARDS,
        "User.filters": FORWARDS,
        "User.identities": FORWARDS,
        "User.sieveScripts": FORWARDS,
        "User.quarantine": FORWARDS,
        "User.temporaryAddresses": FORWARDS,
    },
    "public": {
        "Mutation.authenticate": "where one signs in",
        "Mutation.tokenRevoke": "signing out with an ended token is no error",
        "Mutation.totpCheck": "who waits for it has not signed in yet; all others need a token",
        "Mutation.webauthnChallenge": "who waits for it has not signed in yet; others need a token",
        "Mutation.webauthnCheck": "who waits for it has not signed in yet; others need a token",
        "Query.viewer": "who am I: nobody is an answer",
    },
}

BAD = '''
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
  """d""" old: Int @deprecated(reason: "nobody needs it")
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
  """d""" user: User @auth(role: "PUBLIC")
  """d""" lists: Int
}
"""d"""
type Mutation {
  """d""" createUser("d" input: UserCreate!): Boolean @auth(role: "USER")
  """d""" userLock("d" input: UserLockInput, "d" now: Boolean): UserPayload! @auth
  """d""" userRemove("d" input: UserRemoveInput!): UserUpdatePayload! @auth(role: "USER")
  """d""" userUpdate("d" input: UserUpdateInput!): UserUpdatePayload @auth(role: "USER")
}
"""d"""
interface MutationPayload { """d""" errors: [String!]! }
"""d"""
type UserPayload { """d""" user: User }
"""d"""
type UserUpdatePayload implements MutationPayload { """d""" errors: [String!]! }
"""d"""
input UserCreate { """d""" name: String = null }
"""d"""
input UserLockInput { """d""" validateOnly: Boolean """d""" until: Boolean """d""" lock: Int }
"""d"""
input UserRemoveInput { """d""" name: String! }
"""d"""
input UserUpdateInput { """d""" name: String! }
'''
FOUND = {  # by rule, what of it is found in the bad schema
    "undescribed": {"@auth", "@auth(role:)", "User", "User.lastSeen", "User.flat"},
    "misspelt": {"Colour_Enum", "Colour_Enum.red", "User.usernames(Sort:)"},
    "suffixed": {"Colour_Enum", "UserCreate"},
    "prefixed": {"User.userName"},
    "fetching": {"Query.getUsers"},
    "unordered": {"Mutation.createUser", "Mutation.userLock"},
    "misshapen": {
        "Mutation.createUser",
        "Mutation.createUser(input:)",
        "Mutation.userLock",
        "Mutation.userLock(input:)",
        "Mutation.userRemove",
        "UserPayload",
    },
    "unclear": {
        "Mutation.createUser",
        "User.locked",
        "User.isActive",
        "Mutation.userLock(now:)",
        "UserLockInput.until",
    },
    "untimely": {"Timed.lastSeen"},
    "unconnected": {"UserConnection", "UserEdge", "User.friends"},
    "null_by_default": {"@auth(role:)", "User.usernames(Sort:)", "UserCreate.name"},
    "abandoned": {"User.old", "User.older"},
    "unguarded": {"Query.lists", "Mutation.userLock"},
    "public": {"Query.user"},
}


def test_every_rule_is_tried() -> None:
    assert set(FOUND) == {rule.__name__ for rule in RULES}
    assert set(EXCEPTIONS) <= set(FOUND)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_schema_keeps_to_the_rule(rule: Rule) -> None:
    explained = EXCEPTIONS.get(rule.__name__, {})
    found = set(rule(SDL))
    assert found - set(explained) == set(), rule.__doc__
    assert set(explained) - found == set(), "these keep to the rule: explain them no more"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_what_breaks_it(rule: Rule) -> None:
    assert set(rule(build_schema(BAD))) == FOUND[rule.__name__]


def test_the_printed_schema_is_whole_and_in_order() -> None:
    assert print_schema(build_schema(print_schema(SDL))) == print_schema(SDL)
    kinds = [kind.name for kind in own(SDL) if kind.ast_node]
    assert kinds == sorted(kinds)
    for kind in own(SDL):
        names = list(getattr(kind, "fields", getattr(kind, "values", ())))
        assert names == sorted(names), kind.name


def test_what_costs_more_than_usual_says_so() -> None:
    small = make_schema()
    for made in (schema, small):
        definitions: list[Any] = [*parse(made.as_str()).definitions]
        printed = {
            (kind.name.value, field.name.value): [d.name.value for d in field.directives or ()]
            for kind in definitions
            for field in getattr(kind, "fields", None) or ()
        }
        for kind in own(made._schema):  # noqa: SLF001
            for name, field in getattr(kind, "fields", {}).items():
                costly = hasattr(field, "args") and cost_directive(field) is not None
                assert costly is ("cost" in printed[kind.name, name]), f"{kind.name}.{name}"
    assert "dear: String! @cost(perItem: false, weight: 500)" in small.as_str()
    query_type = small._schema.query_type  # noqa: SLF001
    assert query_type is not None
    assert cost_directive(query_type.fields["chosen"]) == Cost(weight=2, per_item=True)
