"""Example values at the end of descriptions of arguments and input fields.

GraphiQL's completion inserts them. An example is a GraphQL literal of one item. It is found by the
coordinate of the field, else by scalar and name, else by the scalar.
"""

from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLObjectType,
    GraphQLSchema,
    get_named_type,
    get_nullable_type,
)

# JSON, Upload, Cursor and ID are missing: their values come from the application or the server.
EXAMPLES_BY_SCALAR = {
    "ByteSize": '"2 GiB"',
    "CIDR": '"192.0.2.0/24"',
    "DateTime": '"2030-01-31T09:00:00Z"',
    "EmailAddress": '"ann@example.org"',
    "IPAddress": '"192.0.2.7"',
    "URL": '"https://example.org/hook"',
}
_STRING_EXAMPLES = {
    "acmeNames": '"mail.example.org"',
    "activeClaim": '"active"',
    "addFlags": r'"\\Flagged"',
    "address": '"ann@example.org"',
    "adminGroups": '"mail-admins"',
    "alias": '"example.net"',
    "allowedSenders": '"sales@example.org"',
    "allowlist": '"192.0.2.0/24"',
    "archive": '"Archive"',
    "bundleName": '"march"',
    "color": '"#2563eb"',
    "components": '"smtp"',
    "contentId": '"logo@example.org"',
    "contentType": '"application/pdf"',
    "denylist": '"198.51.100.0/24"',
    "destination": '"example.com"',
    "domain": '"example.org"',
    "drafts": '"Drafts"',
    "emailId": '"0123456789abcdef0123456789abcdef"',
    "emailIds": '"0123456789abcdef0123456789abcdef"',
    "exclude": '"^Archive/2019"',
    "expand": '"/srv/mail/%{domain}/%{local}"',
    "filename": '"report.pdf"',
    "flags": r'"\\Seen"',
    "forSite": '"shop.example.com"',
    "forwardTo": '"ann@example.com"',
    "groupsClaim": '"groups"',
    "hostname": '"example.com"',
    "idempotencyKey": '"order-4711"',
    "junk": '"Junk"',
    "keyword": '"project-x"',
    "keywords": '"project-x"',
    "language": '"pt-BR"',
    "listId": '"announce.example.com"',
    "mailboxPatterns": '"Archive/*"',
    "match": '"ann@example.org"',
    "messageIdHeader": '"<4711@example.com>"',
    "mutation": '"userUpdate"',
    "names": '"smtp"',
    "newPath": '"Projects/2027"',
    "nextHop": '"[mx.example.com]:25"',
    "node": '"mx1.example.org:8025"',
    "nodes": '"mx1.example.org"',
    "objectId": '"0123456789abcdef0123456789abcdef"',
    "operations": '"messageSend"',
    "parameters": '"protocols=>=TLSv1.2"',
    "path": '"Projects/2027"',
    "paths": '"Projects/2027"',
    "pattern": '"invoice [0-9]+"',
    "patterns": '"*@example.com"',
    "recipient": '"ann@example.org"',
    "redirectUris": '"https://app.example.org/callback"',
    "removeFlags": r'"\\Flagged"',
    "removeKeywords": '"project-x"',
    "replacement": '"Old/$1"',
    "requiredTags": '"sales"',
    "scope": '"https://mail.google.com/"',
    "scopes": '"openid"',
    "section": '"1.2"',
    "selector": '"s2027"',
    "sender": '"bob@example.com"',
    "senders": '"*@example.com"',
    "sendersRegex": '"@example[.]com$"',
    "sent": '"Sent"',
    "separator": '"*"',
    "seqs": '"1,3:15,40:*"',
    "serverName": '"mail.example.org"',
    "service": '"imap"',
    "sha256": '"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"',
    "store": '"hot"',
    "tag": '"sales"',
    "tags": '"sales"',
    "targetDomain": '"example.org"',
    "targetFolder": '"Old account"',
    "toStore": '"cold"',
    "totp": '"123456"',
    "trash": '"Trash"',
    "uids": '"1,3:15,40:*"',
    "username": '"ann"',
    "usernameClaim": '"preferred_username"',
    "usernames": '"ann"',
}
_DURATION_EXAMPLES = {
    "ago": '"P30D"',
    "debounce": '"PT0.5S"',
    "fromNow": '"P30D"',
    "interval": '"PT15M"',
    "localTimeout": '"PT30S"',
    "maxAge": '"P365D"',
    "overlap": '"P1D"',
    "remoteTimeout": '"PT1M"',
    "retention": '"P90D"',
    "sourceRetention": '"P7D"',
    "timeout": '"PT30S"',
    "tokenTtl": '"P7D"',
    "ttl": '"P30D"',
    "undoWindow": '"PT20S"',
    "validity": '"P180D"',
}
_FILTERS_BY_TIME = (
    "createdBefore", "createdSince", "deletedBefore", "deletedSince", "notSignedInSince",
    "receivedAt", "receivedBefore", "receivedSince", "since", "updatedSince",
)  # fmt: skip
EXAMPLES_BY_NAME = {
    "DateTime": dict.fromkeys(_FILTERS_BY_TIME, '"2026-01-31T00:00:00Z"'),
    "Duration": _DURATION_EXAMPLES,
    "String": _STRING_EXAMPLES,
}
_REMOTE_SERVER_INPUTS = ("RemoteHostInput", "RemoteServerInput", "RemoteServerPatch")
EXAMPLES_BY_COORDINATE = {
    "Autoreply.preview(sender:)": '"bob@example.com"',
    "AutoreplyPatch.interval": '"P1D"',
    "BanAddInput.duration": '"P1D"',
    "BanPolicyPatch.banTime": '"PT30M"',
    "BanPolicyPatch.retryWindow": '"PT10M"',
    "BccRuleCreateInput.bccTo": '"archive@example.org"',
    "BccRulePatch.bccTo": '"archive@example.org"',
    "BlobCopyInput.from": '"admin/report.csv"',
    "BlobCopyInput.to": '"admin/old/report.csv"',
    "BlobDeleteInput.paths": '"admin/report.csv"',
    "BlobFilter.prefix": '"admin/"',
    "BlobPutInput.path": '"admin/report.csv"',
    "CacheRescanInput.maxAge": '"P7D"',
    "CacheRescanInput.path": '"a7/"',
    "CacheUnpackInput.path": '"admin/restore"',
    "ClusterNodeAddInput.host": '"mx1.example.org"',
    "ClusterNodeAddInput.tag": '"eu"',
    "ClusterNodeAddressInput.host": '"mx1.example.org"',
    "ClusterNodeFilter.tag": '"eu"',
    "ClusterNodePatch.drainTime": '"PT10M"',
    "ClusterNodePatch.tag": '"eu"',
    "ClusterNodeRef.host": '"mx1.example.org"',
    "ConnectorOauthInput.tokenUrl": '"https://oauth2.googleapis.com/token"',
    "ConnectorOptionInput.value": '"true"',
    "DkimDomainRef.name": '"example.org"',
    "DomainCreateInput.name": '"example.org"',
    "DomainPatch.quota": '"500 GiB"',
    "DomainCreateInput.quota": '"500 GiB"',
    "DomainRef.name": '"example.org"',
    "DomainRenameInput.newName": '"example.net"',
    "FilterFilter.forward": '"example.com"',
    "FilterFilter.name": '"invoices"',
    "HeldCopyFilter.from": '"bob@example.com"',
    "HeldCopyFilter.subject": '"contract"',
    "SharedMailboxFilter.query": '"Projects"',
    "AddressFilter.forward": '"example.com"',
    "UserFilter.forward": '"example.com"',
    "FilterQueryInput.larger": '"5 MiB"',
    "FilterQueryInput.query": '"from:ann (subject:bill OR larger:5M)"',
    "FilterQueryInput.smaller": '"100 KiB"',
    "FolderRewriteInput.pattern": '"^Archive/(.*)"',
    "ForwardingHostCreateInput.hostname": '"forwarder.example.com"',
    "HeaderInput.name": '"X-Ticket"',
    "HeaderMatch.name": '"X-Mailer"',
    "HeaderTestInput.name": '"List-Id"',
    "IdentityCreateInput.replyTo": '"team@example.org"',
    "IdentityProviderSetInput.issuer": '"https://login.example.com/realms/mail"',
    "ImportSource.path": '"ann.mbox"',
    "KeyValueDeleteInput.store": '"default"',
    "KeyValueEntryFilter.exactKey": '"theme/color"',
    "KeyValueEntryFilter.prefix": '"theme/"',
    "KeyValueEntryFilter.store": '"default"',
    "KeyValueIncrementInput.store": '"default"',
    "KeyValueKeyInput.store": '"default"',
    "KeyValueSetInput.store": '"default"',
    "KeyValueDeleteInput.key": '"theme/color"',
    "KeyValueIncrementInput.key": '"counters/visits"',
    "KeyValueKeyInput.key": '"theme/color"',
    "KeyValueSetInput.key": '"theme/color"',
    "User.keyValue(key:)": '"theme/color"',
    "Mailbox.annotation(key:)": '"/private/comment"',
    "Mailbox.annotations(prefix:)": '"/private/"',
    "MailboxAnnotationDeleteInput.key": '"/private/comment"',
    "MailboxAnnotationSetInput.key": '"/private/comment"',
    "MailboxFilter.patterns": '"Archive/*"',
    "MailboxRepairInput.mailboxPatterns": '"Archive/*"',
    "Message.header(name:)": '"List-Id"',
    "MessageFilter.larger": '"5 MiB"',
    "MessageFilter.query": '"quarterly report"',
    "MessageFilter.smaller": '"100 KiB"',
    "MessageRedirectInput.to": '"bob@example.com"',
    "MutationOptions.sessionId": '"tab-7"',
    "PastTimeInput.ago": '"P30D"',
    "PushChannelSetInput.title": '"{SENDER_NAME}: {SUBJECT}"',
    "PushChannelSetInput.text": '"{SUBJECT}"',
    "Query.blob(path:)": '"admin/report.csv"',
    "Query.messages(query:)": r'"from:ann has:attachment -in:trash \"exact words\""',
    "Query.searchParse(query:)": r'"from:ann has:attachment -in:trash \"exact words\""',
    "Query.statistics(step:)": '"PT1H"',
    "RecipientRewriteCreateInput.from": '"sales@example.org"',
    "RecipientRewriteCreateInput.to": '"ann@example.org"',
    "RecipientRewritePatch.from": '"sales@example.org"',
    "RecipientRewritePatch.to": '"ann@example.org"',
    "RecipientRewriteRef.from": '"sales@example.org"',
    "RegexTestInput.name": '"Subject"',
    "SavedSearchCreateInput.query": '"is:unread from:ann"',
    "SavedSearchPatch.query": '"is:unread from:ann"',
    "ServerStopInput.grace": '"PT30S"',
    "SettingFilter.query": '"limits"',
    "SettingRef.key": '"limits.warningPercent"',
    "SettingSetInput.key": '"limits.warningPercent"',
    "SettingSetInput.value": "90",
    "SieveScriptRef.name": '"holiday"',
    "SieveScriptSetInput.name": '"holiday"',
    "Subscription.metrics(interval:)": '"PT10S"',
    "TotpImportInput.secret": '"JBSWY3DPEHPK3PXP"',
    "TotpEnableInput.token": '"123456"',
    "TotpVerifyInput.token": '"123456"',
    "User.serviceSettings(fields:)": '"quota/storage"',
    "User.sieveScript(name:)": '"holiday"',
    "UserAffinitySetInput.duration": '"P30D"',
    "UserFilter.patterns": '"ann*"',
    "UserImpersonateInput.ttl": '"PT30M"',
    "UserImportInput.path": '"ann.tar"',
    "UserSelection.patterns": '"ann*"',
    **{f"{name}.host": '"imap.example.com"' for name in _REMOTE_SERVER_INPUTS},
    "RelayHostCreateInput.host": '"relay.example.com:587"',
    "RelayHostPatch.host": '"relay.example.com:587"',
}


def append_examples(schema: GraphQLSchema) -> None:
    """Append an example value to the description of each argument and input field that has one."""
    for kind in schema.type_map.values():
        if isinstance(kind, GraphQLInputObjectType):
            for name, member in kind.fields.items():
                _append_example(f"{kind.name}.{name}", name, member)
        elif isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            for field_name, field in kind.fields.items():
                for name, argument in field.args.items():
                    _append_example(f"{kind.name}.{field_name}({name}:)", name, argument)


def _append_example(
    coordinate: str, name: str, member: GraphQLArgument | GraphQLInputField
) -> None:
    example = example_or_none(coordinate, name, member.type)
    text = f"Example: `{example}`."
    if example and not (member.description or "").endswith(text):
        member.description = f"{member.description or ''} {text}".strip()


def example_or_none(coordinate: str, name: str, kind: Any) -> str | None:
    """Return the literal of an example value, in brackets for a list; None if there is none."""
    scalar = get_named_type(kind).name
    by_name = EXAMPLES_BY_NAME.get(scalar, {}).get(name, EXAMPLES_BY_SCALAR.get(scalar))
    example = EXAMPLES_BY_COORDINATE.get(coordinate, by_name)
    if example is None:
        return None
    return f"[{example}]" if isinstance(get_nullable_type(kind), GraphQLList) else example
