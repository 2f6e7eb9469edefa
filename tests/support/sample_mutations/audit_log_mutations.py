"""The mutations that write the audit log, and what their entries contain.

A new mutation for administrators is added here. A mutation of a lower role is added if it can also
change another account.
"""

from dataclasses import dataclass

from tests.support.sample_mutations.audit_log_calls import (
    PrepareCall,
    call_on_account_of_ada,
    call_on_ada,
    call_on_mailbox_of_ada,
    call_on_messages_of_ada,
    call_on_object_of_ada,
    call_on_script_of_ada,
    call_on_shared_entry,
    create_connector_for_ada,
    create_filter_for_ada,
    create_filters_for_ada,
    create_identity_for_ada,
    create_key_for_ada,
    delete_autoreply_of_ada,
    delete_key_of_ada,
    import_filters_for_ada,
    import_for_ada,
    purge_ada,
    reset_password_of_ada,
    restore_ada,
    set_push_channel_of_ada,
    update_mailbox_of_ada,
)


@dataclass(frozen=True)
class AuditLogExpectation:
    """The contents of an entry: the type of its target, and the names in `before` and `after`."""

    target_type: str | None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    prepare: PrepareCall | None = None  # if the sample call is on the caller's own objects


MBOX = "From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
AUDIT_LOG_EXPECTATIONS: dict[str, AuditLogExpectation] = {
    "addressCreate": AuditLogExpectation("Address", after=("address", "user")),
    "addressesCreate": AuditLogExpectation("Address", after=("address", "user")),
    "addressesCreateFromFile": AuditLogExpectation("Task", after=("file",)),
    "temporaryAddressCreate": AuditLogExpectation(
        "Address",
        after=("address", "user"),
        prepare=call_on_account_of_ada("temporaryAddressCreate"),
    ),
    "addressDelete": AuditLogExpectation("Address", before=("address",)),
    "addressUpdate": AuditLogExpectation(
        "Address", before=("active", "forwardTo"), after=("active", "forwardTo")
    ),
    "userExport": AuditLogExpectation("User", prepare=call_on_account_of_ada("userExport")),
    "userImport": AuditLogExpectation(
        "User", prepare=call_on_account_of_ada("userImport", archive={"text": MBOX})
    ),
    "userImpersonate": AuditLogExpectation("User", after=("until",)),
    "blobCollect": AuditLogExpectation("Blob"),
    "blobCopy": AuditLogExpectation("Blob", after=("store", "path", "to", "sha256")),
    "blobDelete": AuditLogExpectation("Blob", before=("store", "path")),
    "blobPut": AuditLogExpectation("Blob", after=("store", "path", "sha256")),
    "cacheClean": AuditLogExpectation("CacheEntry", after=("days", "count", "size")),
    "cacheFlush": AuditLogExpectation("CacheEntry", after=("count", "size")),
    "cacheRemove": AuditLogExpectation("CacheEntry", after=("count", "size")),
    "cacheRescan": AuditLogExpectation("CacheEntry", after=("path", "count", "size")),
    "cacheUnpack": AuditLogExpectation("Blob", after=("store", "path", "fileCount")),
    "legalHoldCreate": AuditLogExpectation("LegalHold", after=("user", "expiresAt")),
    "legalHoldEnd": AuditLogExpectation("LegalHold", before=("user",)),
    "autoreplyDelete": AuditLogExpectation(
        "User", before=("enabled",), prepare=delete_autoreply_of_ada
    ),
    "autoreplySet": AuditLogExpectation(
        "User",
        after=("enabled", "text"),
        prepare=call_on_ada("autoreplySet", set={"enabled": True, "text": "I am away."}),
    ),
    "bccRuleCreate": AuditLogExpectation(
        "BccRule", after=("match", "bccTo", "direction", "active")
    ),
    "bccRuleDelete": AuditLogExpectation(
        "BccRule", before=("match", "bccTo", "direction", "active")
    ),
    "bccRuleUpdate": AuditLogExpectation("BccRule", before=("bccTo",), after=("bccTo",)),
    "certificateDelete": AuditLogExpectation(
        "Certificate", before=("serverName", "fingerprintSha256")
    ),
    "certificateRenew": AuditLogExpectation("Certificate", after=("serverName",)),
    "certificateSet": AuditLogExpectation(
        "Certificate", after=("serverName", "acme", "fingerprintSha256")
    ),
    "externalTwoFactorDisable": AuditLogExpectation(
        "User", before=("twoFactorMethods",), after=("twoFactorMethods",)
    ),
    "externalTwoFactorEnable": AuditLogExpectation(
        "User", before=("twoFactorMethods",), after=("twoFactorMethods",)
    ),
    "dkimKeyActivate": AuditLogExpectation("DkimKey", before=("state",), after=("state",)),
    "dkimKeyCopy": AuditLogExpectation("DkimKey", after=("domain", "selector", "fingerprint")),
    "dkimKeyDelete": AuditLogExpectation("DkimKey", before=("domain", "selector", "fingerprint")),
    "dkimKeyRotate": AuditLogExpectation("DkimKey", after=("domain", "selector", "state")),
    "dkimKeySet": AuditLogExpectation("DkimKey", after=("domain", "selector", "algorithm")),
    "aliasDomainCreate": AuditLogExpectation("AliasDomain"),
    "aliasDomainDelete": AuditLogExpectation("AliasDomain"),
    "domainCreate": AuditLogExpectation("Domain"),
    "domainDelete": AuditLogExpectation("Domain"),
    "domainRename": AuditLogExpectation("Domain"),
    "domainUpdate": AuditLogExpectation("Domain", before=("description",), after=("description",)),
    "filterCreate": AuditLogExpectation(
        "Filter", after=("name", "position", "active"), prepare=create_filter_for_ada
    ),
    "filtersCreate": AuditLogExpectation(
        "Filter", after=("name", "position", "active"), prepare=create_filters_for_ada
    ),
    "filtersCreateFromFile": AuditLogExpectation("Task", after=("file",)),
    "filterDelete": AuditLogExpectation(
        "Filter", before=("name",), prepare=call_on_object_of_ada("filterDelete")
    ),
    "filterImport": AuditLogExpectation(
        "Filter", after=("name", "position", "active"), prepare=import_filters_for_ada
    ),
    "filterUpdate": AuditLogExpectation(
        "Filter", before=("name",), after=("name",), prepare=call_on_object_of_ada("filterUpdate")
    ),
    "identityCreate": AuditLogExpectation(
        "Identity",
        after=("address", "name"),
        prepare=create_identity_for_ada,
    ),
    "identityDelete": AuditLogExpectation(
        "Identity", before=("address", "name"), prepare=call_on_object_of_ada("identityDelete")
    ),
    "identityUpdate": AuditLogExpectation(
        "Identity",
        before=("address", "name"),
        after=("address", "name"),
        prepare=call_on_object_of_ada("identityUpdate"),
    ),
    "mailboxCreate": AuditLogExpectation("User", prepare=call_on_ada("mailboxCreate", paths=["A"])),
    "mailboxDelete": AuditLogExpectation("User", prepare=call_on_mailbox_of_ada("mailboxDelete")),
    "mailboxAnnotationSet": AuditLogExpectation(
        "User",
        prepare=call_on_ada(
            "mailboxAnnotationSet", mailbox={"path": "INBOX"}, key="/private/comment", value="x"
        ),
    ),
    "mailboxAnnotationDelete": AuditLogExpectation(
        "User",
        prepare=call_on_ada(
            "mailboxAnnotationDelete", mailbox={"path": "INBOX"}, key="/private/comment"
        ),
    ),
    "mailboxRename": AuditLogExpectation(
        "User", prepare=call_on_ada("mailboxRename", mailbox={"path": "Sent"}, newPath="A")
    ),
    "mailboxStateSet": AuditLogExpectation("User"),
    "mailboxSubscribe": AuditLogExpectation(
        "User", prepare=call_on_ada("mailboxSubscribe", mailboxes=[{"path": "A"}])
    ),
    "mailboxUnsubscribe": AuditLogExpectation(
        "User", prepare=call_on_ada("mailboxUnsubscribe", mailboxes=[{"path": "Sent"}])
    ),
    "mailboxUpdate": AuditLogExpectation("User", prepare=update_mailbox_of_ada),
    "messageCopy": AuditLogExpectation(
        "User",
        after=("messages",),
        prepare=call_on_messages_of_ada("messageCopy", to={"path": "Sent"}),
    ),
    "messageDeduplicate": AuditLogExpectation(
        "User", after=("messages",), prepare=call_on_messages_of_ada("messageDeduplicate")
    ),
    "messageDelete": AuditLogExpectation(
        "User", after=("messages",), prepare=call_on_messages_of_ada("messageDelete")
    ),
    "messageMove": AuditLogExpectation(
        "User",
        after=("messages",),
        prepare=call_on_messages_of_ada("messageMove", to={"path": "Sent"}),
    ),
    "messageTierMove": AuditLogExpectation("User", after=("messages",)),
    "draftSave": AuditLogExpectation(
        "User", prepare=call_on_account_of_ada("draftSave", set={"subject": "x"})
    ),
    "messageImport": AuditLogExpectation(
        "User",
        prepare=call_on_ada("messageImport", mailbox={"path": "INBOX"}, raw="Subject: x\n\nx\n"),
    ),
    "messageUpdate": AuditLogExpectation(
        "User",
        after=("messages",),
        prepare=call_on_messages_of_ada("messageUpdate", set={"seen": True}),
    ),
    "connectorRunCancel": AuditLogExpectation(
        "ConnectorRun", before=("state",), prepare=call_on_object_of_ada("connectorRunCancel")
    ),
    "connectorCreate": AuditLogExpectation(
        "Connector", after=("name", "host"), prepare=create_connector_for_ada
    ),
    "connectorDelete": AuditLogExpectation(
        "Connector", before=("name", "host"), prepare=call_on_object_of_ada("connectorDelete")
    ),
    "connectorStart": AuditLogExpectation(
        "Connector", after=("name", "dryRun"), prepare=call_on_object_of_ada("connectorStart")
    ),
    "connectorUpdate": AuditLogExpectation(
        "Connector",
        before=("name", "host", "active"),
        after=("name", "host", "active"),
        prepare=call_on_object_of_ada("connectorUpdate"),
    ),
    "mailImport": AuditLogExpectation("User", prepare=import_for_ada),
    "keyValueDelete": AuditLogExpectation(
        "KeyValueEntry",
        before=("store", "key", "entries"),
        prepare=call_on_shared_entry("keyValueDelete"),
    ),
    "keyValueIncrement": AuditLogExpectation(
        "KeyValueEntry",
        after=("store", "key"),
        prepare=call_on_shared_entry("keyValueIncrement", delta=1),
    ),
    "keyValueSet": AuditLogExpectation(
        "KeyValueEntry",
        after=("store", "key"),
        prepare=call_on_shared_entry("keyValueSet", value="correct horse"),
    ),
    "userPasswordReset": AuditLogExpectation("User", prepare=reset_password_of_ada),
    "userPreferencesReset": AuditLogExpectation(
        "User", prepare=call_on_ada("userPreferencesReset")
    ),
    "totpImport": AuditLogExpectation("User", after=("twoFactorMethods",)),
    "userDelete": AuditLogExpectation(
        "User", before=("username",), prepare=call_on_ada("userDelete")
    ),
    "userPermissionsSet": AuditLogExpectation(
        "User", prepare=call_on_ada("userPermissionsSet", permissions=[])
    ),
    "userPurge": AuditLogExpectation("User", before=("username",), prepare=purge_ada),
    "userRestore": AuditLogExpectation("User", prepare=restore_ada),
    "userRoleSet": AuditLogExpectation(
        "User", before=("role",), after=("role",), prepare=call_on_ada("userRoleSet", role="ADMIN")
    ),
    "apiKeyCreate": AuditLogExpectation(
        "ApiKey", after=("name", "role"), prepare=create_key_for_ada
    ),
    "apiKeyDelete": AuditLogExpectation(
        "ApiKey", before=("name", "role"), prepare=delete_key_of_ada
    ),
    "senderRuleCreate": AuditLogExpectation(
        "SenderRule",
        after=("pattern", "action", "scope"),
        prepare=call_on_object_of_ada("senderRuleCreate"),
    ),
    "senderRuleDelete": AuditLogExpectation(
        "SenderRule",
        before=("pattern", "action", "scope"),
        prepare=call_on_object_of_ada("senderRuleDelete"),
    ),
    "quarantineDelete": AuditLogExpectation(
        "QuarantineItem",
        before=("sender", "recipient"),
        prepare=call_on_object_of_ada("quarantineDelete"),
    ),
    "quarantineRelease": AuditLogExpectation(
        "QuarantineItem",
        before=("sender", "recipient"),
        prepare=call_on_object_of_ada("quarantineRelease"),
    ),
    "queueDelete": AuditLogExpectation(
        "QueueEntry", before=("queueId", "sender"), prepare=call_on_object_of_ada("queueDelete")
    ),
    "queueFlush": AuditLogExpectation("QueueEntry", before=("queueId", "sender")),
    "queueHold": AuditLogExpectation("QueueEntry", before=("queueId", "sender"), after=("held",)),
    "queueRelease": AuditLogExpectation(
        "QueueEntry", before=("queueId", "sender"), after=("held",)
    ),
    "rateLimitReset": AuditLogExpectation("User", before=("rateLimit",), after=("rateLimit",)),
    "rateLimitSet": AuditLogExpectation("User", before=("rateLimit",), after=("rateLimit",)),
    "recipientRewriteCreate": AuditLogExpectation(
        "RecipientRewrite", after=("from", "to", "active")
    ),
    "recipientRewriteDelete": AuditLogExpectation(
        "RecipientRewrite", before=("from", "to", "active")
    ),
    "recipientRewriteUpdate": AuditLogExpectation(
        "RecipientRewrite", before=("to",), after=("to",)
    ),
    "sieveScriptActivate": AuditLogExpectation(
        "SieveScript",
        before=("name", "active"),
        after=("name", "active"),
        prepare=call_on_script_of_ada("sieveScriptActivate", sieveScript={"name": "a"}),
    ),
    "sieveScriptDeactivate": AuditLogExpectation(
        "SieveScript", after=("active",), prepare=call_on_script_of_ada("sieveScriptDeactivate")
    ),
    "sieveScriptDelete": AuditLogExpectation(
        "SieveScript",
        before=("name", "size"),
        prepare=call_on_script_of_ada(
            "sieveScriptDelete", sieveScripts=[{"name": "a"}], ignoreActive=True
        ),
    ),
    "sieveScriptSet": AuditLogExpectation(
        "SieveScript",
        after=("name", "size"),
        prepare=call_on_script_of_ada("sieveScriptSet", name="b", content="discard;"),
    ),
    "sieveScriptRename": AuditLogExpectation(
        "SieveScript",
        before=("name",),
        after=("name",),
        prepare=call_on_script_of_ada("sieveScriptRename", sieveScript={"name": "a"}, newName="b"),
    ),
    "forwardingHostCreate": AuditLogExpectation(
        "ForwardingHost", after=("host", "source", "filterSpam")
    ),
    "forwardingHostDelete": AuditLogExpectation(
        "ForwardingHost", before=("host", "source", "filterSpam")
    ),
    "banAdd": AuditLogExpectation("NetworkBan", after=("network", "endsAt")),
    "banLift": AuditLogExpectation("NetworkBan", before=("network",)),
    "componentStart": AuditLogExpectation(None, after=("components",)),
    "componentStop": AuditLogExpectation(None, after=("components",)),
    "configReload": AuditLogExpectation(None, after=("node", "changedKeys")),
    "serverStop": AuditLogExpectation(None, after=("node", "graceSeconds")),
    "banPolicyUpdate": AuditLogExpectation(
        "BanPolicy", before=("maxAttempts", "denylist"), after=("maxAttempts", "denylist")
    ),
    "metricsReset": AuditLogExpectation("MetricSet", after=("names",)),
    "clusterNodeAdd": AuditLogExpectation(
        "ClusterNode", after=("host", "port", "kind", "tag", "weight", "state")
    ),
    "clusterNodeFlush": AuditLogExpectation(
        "ClusterNode", before=("pinnedUserCount",), after=("pinnedUserCount", "force")
    ),
    "clusterNodeRemove": AuditLogExpectation(
        "ClusterNode", before=("host", "port", "kind", "tag", "weight", "state")
    ),
    "clusterNodeUpdate": AuditLogExpectation("ClusterNode", before=("weight",), after=("weight",)),
    "userAffinitySet": AuditLogExpectation("User", before=("node",), after=("node",)),
    "identityLinkDelete": AuditLogExpectation("User", before=("identityLink",)),
    "identityProviderSet": AuditLogExpectation(
        "Domain", after=("issuer", "clientId", "passwordSignInAllowed", "clientSecret")
    ),
    "identityProviderDelete": AuditLogExpectation("Domain", before=("issuer", "clientId")),
    "oauthClientCreate": AuditLogExpectation(
        "OauthClient", after=("name", "redirectUris", "grantTypes", "scopes")
    ),
    "oauthClientDelete": AuditLogExpectation(
        "OauthClient", before=("name", "redirectUris", "grantTypes", "scopes")
    ),
    "oauthClientSecretRotate": AuditLogExpectation("OauthClient", after=("secret",)),
    "oauthClientUpdate": AuditLogExpectation("OauthClient", before=("name",), after=("name",)),
    "relayHostCreate": AuditLogExpectation(
        "RelayHost", after=("host", "port", "username", "tls", "active")
    ),
    "relayHostDelete": AuditLogExpectation(
        "RelayHost", before=("host", "port", "username", "tls", "active")
    ),
    "relayHostUpdate": AuditLogExpectation("RelayHost", before=("active",), after=("active",)),
    "resourceCreate": AuditLogExpectation(
        "Resource", after=("address", "name", "kind", "bookingPolicy", "bookingLimit", "active")
    ),
    "resourceDelete": AuditLogExpectation(
        "Resource", before=("address", "name", "kind", "bookingPolicy", "bookingLimit", "active")
    ),
    "resourceUpdate": AuditLogExpectation(
        "Resource",
        before=("bookingPolicy", "bookingLimit"),
        after=("bookingPolicy", "bookingLimit"),
    ),
    "transportCreate": AuditLogExpectation("Transport", after=("destination", "nextHop", "active")),
    "transportDelete": AuditLogExpectation(
        "Transport", before=("destination", "nextHop", "active")
    ),
    "transportUpdate": AuditLogExpectation("Transport", before=("nextHop",), after=("nextHop",)),
    "tlsPolicyCreate": AuditLogExpectation(
        "TlsPolicy", after=("destination", "level", "parameters")
    ),
    "tlsPolicyDelete": AuditLogExpectation(
        "TlsPolicy", before=("destination", "level", "parameters")
    ),
    "tlsPolicyUpdate": AuditLogExpectation(
        "TlsPolicy", before=("level", "parameters"), after=("level", "parameters")
    ),
    "settingDelete": AuditLogExpectation("Setting", before=("submission.maxRecipients",)),
    "settingSet": AuditLogExpectation("Setting", after=("submission.maxRecipients",)),
    "userUsageReset": AuditLogExpectation("User", before=("limits",), after=("limits",)),
    "userCreate": AuditLogExpectation("User", after=("username", "role")),
    "usersCreate": AuditLogExpectation("User", after=("username", "role")),
    "usersCreateFromFile": AuditLogExpectation("Task", after=("file",)),
    "pushChannelDelete": AuditLogExpectation(
        "PushChannel", before=("kind",), prepare=call_on_object_of_ada("pushChannelDelete")
    ),
    "pushChannelSet": AuditLogExpectation(
        "PushChannel", after=("kind", "active"), prepare=set_push_channel_of_ada
    ),
    "pushChannelTest": AuditLogExpectation(
        "PushChannel", before=("kind",), prepare=call_on_object_of_ada("pushChannelTest")
    ),
    "webhookCreate": AuditLogExpectation("Webhook", after=("types", "url")),
    "webhookDelete": AuditLogExpectation("Webhook", before=("types", "url")),
    "webhookReplay": AuditLogExpectation("Webhook", after=("events",)),
    "webhookSecretRotate": AuditLogExpectation("Webhook"),
    "webhookTest": AuditLogExpectation("Webhook"),
    "webhookUpdate": AuditLogExpectation("Webhook", before=("active",), after=("active",)),
}
# mutations for administrators that change no object of others, with the reason
UNLOGGED_MUTATIONS: dict[str, str] = {
    "authCacheFlush": "it only empties a cache",
    "identityProviderTest": "it changes nothing",
    "mailboxRepair": "it only corrects computed columns",
    "quotaRecalculate": "it only corrects counters",
    "routeTest": "it changes and sends nothing",
    "searchIndexBuild": "it only indexes earlier what is indexed anyway",
    "searchIndexOptimize": "searches find the same messages as before",
    "sessionDrain": "it waits; the security log has the sessions that it ends",
    "searchIndexRebuild": "it only computes the index again",
}
