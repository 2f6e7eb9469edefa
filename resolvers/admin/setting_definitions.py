"""The definitions of all settings: type, range and description."""

from datetime import timedelta

from models.runtime.options import MIB
from resolvers.admin.setting_types import (
    DAY,
    SettingDefinition,
    SettingKind,
    convert_domain,
    validate_and_convert_retry_delays,
    validate_contact_or_empty,
    validate_log_levels,
    validate_rate_or_empty,
    validate_whole_days,
    validated_delimiters,
    validator_of_choices,
)

TIB = MIB << 20
MINUTE, ZERO, CENTURY = timedelta(minutes=1), timedelta(0), timedelta(days=36_500)
NUMBER, SIZE, DURATION = SettingKind.NUMBER, SettingKind.SIZE, SettingKind.DURATION
# Each has key, type, name and description for people, and range.
DEFINITIONS: dict[str, SettingDefinition] = {
    definition.key: definition
    for definition in (
        SettingDefinition(
            "acme.contact", SettingKind.STRING, "Contact address for certificates",
            "E-mail address that the ACME certificate authority stores with this server's "
            "account. Empty: none.", convert=validate_contact_or_empty,
        ),
        SettingDefinition(
            "acme.termsAgreed", SettingKind.BOOLEAN, "Terms of the certificate authority",
            "You agree to the terms of the ACME certificate authority. If false, no certificate is "
            "requested.",
        ),
        SettingDefinition(
            "addresses.maxTemporaryPerUser", NUMBER, "Temporary addresses",
            "Temporary addresses that a user can have.", 0, 10_000,
        ),
        SettingDefinition(
            "addresses.subaddressDelimiters", SettingKind.STRING, "Subaddress delimiters",
            "Characters that begin a subaddress (RFC 5233): ada+news@ is delivered to ada@, unless "
            "ada+news@ is an address of its own. Some of + - _ = #. Empty: no subaddresses.",
            convert=validated_delimiters,
        ),
        SettingDefinition(
            "auditLog.retention", DURATION, "Administrative log",
            "How long the log of administrative changes is kept.", DAY, CENTURY,
        ),
        SettingDefinition(
            "authentication.check", SettingKind.STRING, "Checks of incoming mail",
            "Which incoming mail is checked by SPF, DKIM, DMARC and ARC: smtp, mail received by "
            "SMTP; all, also mail received by LMTP; off, none.",
            convert=validator_of_choices("off", "smtp", "all"),
        ),
        SettingDefinition(
            "autoreply.interval", DURATION, "Interval of automatic replies",
            "A sender gets at most one automatic reply in this time, unless the account sets "
            "another interval.", timedelta(hours=1), timedelta(days=366),
        ),
        SettingDefinition(
            "bulk.maxItems", NUMBER, "Bulk changes",
            "Messages that one request changes directly; more become a task. Also the most objects "
            "that most mutations accept in one list.", 1, 10_000,
        ),
        SettingDefinition(
            "connectors.allowPrivateNetworks", SettingKind.BOOLEAN,
            "Connectors to private networks",
            "Connectors can fetch mail from private and loopback addresses, and without "
            "encryption.",
        ),
        SettingDefinition(
            "deletedMessages.retention", DURATION, "Deleted messages",
            "How long deleted messages can be restored.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "dkim.retiredKeyRetention", DURATION, "Retired DKIM keys",
            "How long DKIM keys that no longer sign are kept. Their DNS records are needed for the "
            "same time.", DAY, CENTURY,
        ),
        SettingDefinition(
            "dkim.signHostDomain", SettingKind.BOOLEAN, "Signature of the host's domain",
            "Outgoing mail is also signed with the DKIM keys of the domain of this server's host "
            "name.",
        ),
        SettingDefinition(
            "dmarc.onFailure", SettingKind.STRING, "Mail that fails DMARC",
            "What happens to mail that fails DMARC if the policy of its domain is quarantine or "
            "reject: junk, delivery to Junk; reject, rejection if the policy is reject, else "
            "delivery to Junk; ignore, nothing.",
            convert=validator_of_choices("ignore", "junk", "reject"),
        ),
        SettingDefinition(
            "duplicateDelivery.retention", DURATION, "Duplicate deliveries",
            "How long a delivery is remembered, so that a repeated delivery of the same message is "
            "not stored twice.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "files.quota", SIZE, "Storage for files",
            "Storage of a user for files that are shared or wait for a draft. 0: unlimited.",
            0, 16 * TIB,
        ),
        SettingDefinition(
            "files.retention", DURATION, "Unused files",
            "Files that are not shared and were not downloaded for this time are deleted. PT0S: "
            "never.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "filters.maxPerUser", NUMBER, "Filters", "Filters that a user can have.", 0, 1000
        ),
        SettingDefinition(
            "forwards.allowPrivateNetworks", SettingKind.BOOLEAN,
            "Forwarding to private networks",
            "Accounts and addresses can forward to relays and URLs in private, loopback and "
            "link-local networks.",
        ),
        SettingDefinition(
            "idempotency.retention", DURATION, "Idempotency keys",
            "How long the response to a mutation with an idempotency key is kept.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "identityProviders.allowPrivateNetworks", SettingKind.BOOLEAN,
            "Identity providers in private networks",
            "Identity providers can use private, loopback and link-local addresses, and http.",
        ),
        SettingDefinition(
            "journal.maxEvents", NUMBER, "Length of the journal",
            "Changes of one account that clients can still read.", 1000, 100_000_000,
        ),
        SettingDefinition(
            "journal.retention", DURATION, "Journal",
            "How long clients that were offline can still read changes. Whole days.", DAY, CENTURY,
            convert=validate_whole_days,
        ),
        SettingDefinition(
            "keyValue.maxEntries", NUMBER, "Entries of key-value stores",
            "Entries of a user in all key-value stores, and of all shared entries together.",
            0, 10_000,
        ),
        SettingDefinition(
            "keyValue.maxKeyLevels", NUMBER, "Levels of keys",
            "Levels of a key in a key-value store. Slashes separate levels.", 1, 512,
        ),
        SettingDefinition(
            "keyValue.maxKeySize", SIZE, "Longest key",
            "Longest key of a key-value store, in bytes of UTF-8.", 1, 1024,
        ),
        SettingDefinition(
            "keyValue.maxTotalSize", SIZE, "Size of key-value stores",
            "Size of all keys and values of a user, and of all shared ones together.", 0, 64 * MIB,
        ),
        SettingDefinition(
            "keyValue.maxValueSize", SIZE, "Largest value",
            "Largest value of a key-value store, in bytes of UTF-8.", 0, MIB,
        ),
        SettingDefinition(
            "limits.criticalPercent", NUMBER, "Level CRITICAL of limits",
            "Percent of a limit from which its level is CRITICAL. 0: never.", 0, 99,
        ),
        SettingDefinition(
            "limits.forwardsPerDay", NUMBER, "Forwarded messages",
            "Messages that an account or address without its own limit can forward in 24 hours. "
            "0: unlimited.", 0, 100_000_000,
        ),
        SettingDefinition(
            "limits.sendRatePerDomain", SettingKind.STRING, "Send rate of a domain",
            "Messages that all accounts of a domain without its own rate limit can send together "
            "in a time, such as 100/HOUR. Empty: unlimited.", convert=validate_rate_or_empty,
        ),
        SettingDefinition(
            "limits.sendRatePerUser", SettingKind.STRING, "Send rate of an account",
            "Messages that an account without its own rate limit can send in a time, such as "
            "100/HOUR. Empty: unlimited.", convert=validate_rate_or_empty,
        ),
        SettingDefinition(
            "limits.sendRatePlatform", SettingKind.STRING, "Send rate of the platform",
            "Messages that all accounts can send together in a time, such as 100/HOUR. Empty: "
            "unlimited.", convert=validate_rate_or_empty,
        ),
        SettingDefinition(
            "limits.warningPercent", NUMBER, "Level WARNING of limits",
            "Percent of a limit from which its level is WARNING. 0: never.", 0, 99,
        ),
        SettingDefinition(
            "logs.levels", SettingKind.STRING, "Levels of the log store",
            "From which level entries of the log store are kept: DEBUG, INFO, WARNING, ERROR or "
            "OFF, then exceptions for components, as in INFO API=WARNING SPAM=OFF.",
            convert=validate_log_levels,
        ),
        SettingDefinition(
            "logs.maxSize", SIZE, "Size of the log store",
            "Largest size of the log store. Beyond it the oldest entries are deleted.",
            16 * MIB, TIB,
        ),
        SettingDefinition(
            "logs.retention", DURATION, "Log store",
            "How long entries of the log store can be read.", timedelta(hours=1), CENTURY,
        ),
        SettingDefinition(
            "mailboxes.maxPerUser", NUMBER, "Mailboxes", "Mailboxes of a user.", 5, 100_000
        ),
        SettingDefinition(
            "message.maxSize", SIZE, "Largest message",
            "Largest message that is accepted, sent or stored. An open LMTP session keeps the "
            "value of its start.", 1 << 16, 256 * MIB,
        ),
        SettingDefinition(
            "messageTrace.retention", DURATION, "Message trace",
            "How long the delivery trace of messages is kept. PT0S: none is written.", ZERO,
            CENTURY,
        ),
        SettingDefinition(
            "metadata.maxSize", SIZE, "Largest metadata",
            "Largest object that applications can store as metadata of a user, an address, a "
            "filter or a message, in bytes of JSON. It also limits the value of an annotation.",
            0, MIB,
        ),
        SettingDefinition(
            "mtaSts.mode", SettingKind.STRING, "MTA-STS policy",
            "Mode of the MTA-STS policy (RFC 8461) of the domains on this server: testing, "
            "enforce, or off for no policy.",
            convert=validator_of_choices("off", "testing", "enforce"),
        ),
        SettingDefinition(
            "mx.allowPrivateNetworks", SettingKind.BOOLEAN, "MX hosts in private networks",
            "Outgoing mail can be sent to MX hosts with private, loopback and link-local "
            "addresses.",
        ),
        SettingDefinition(
            "outbound.connectionsPerDomain", NUMBER, "Connections to a domain",
            "Concurrent connections of one process to the servers of one domain.", 1, 100,
        ),
        SettingDefinition(
            "outbound.messagesPerConnection", NUMBER, "Messages of a connection",
            "Messages that are sent over one connection.", 1, 10_000,
        ),
        SettingDefinition(
            "outbound.messagesPerMinutePerDomain", NUMBER, "Messages to a domain in a minute",
            "Messages in a minute to one domain, relay or next hop. 0: unlimited.", 0, 1_000_000,
        ),
        SettingDefinition(
            "passwords.minCharacterClasses", NUMBER, "Character classes of passwords",
            "Least number of character classes in a new password: lower case, upper case, digits, "
            "others. A domain can set another number.", 1, 4,
        ),
        SettingDefinition(
            "passwords.minLength", NUMBER, "Length of passwords",
            "Least number of characters of a new password. A domain can set another number.",
            1, 256,
        ),
        SettingDefinition(
            "push.allowPrivateNetworks", SettingKind.BOOLEAN, "Push to private networks",
            "Push channels can use private, loopback and link-local addresses.",
        ),
        SettingDefinition(
            "quarantine.maxBytesPerUser", SIZE, "Size of the quarantine",
            "Bytes of a user in the quarantine. The oldest messages are deleted if there are more.",
            1 << 16, 16 * TIB,
        ),
        SettingDefinition(
            "quarantine.maxMessageSize", SIZE, "Largest quarantined message",
            "Largest message that is quarantined.", 1 << 16, 256 * MIB,
        ),
        SettingDefinition(
            "quarantine.maxMessagesPerUser", NUMBER, "Quarantined messages",
            "Messages of a user in the quarantine. The oldest are deleted if there are more.",
            1, 10_000,
        ),
        SettingDefinition(
            "quarantine.retention", DURATION, "Quarantine",
            "How long messages that nobody releases stay in the quarantine.",
            DAY, timedelta(days=366),
        ),
        SettingDefinition(
            "queue.delayNoticeAfter", DURATION, "Delay notice",
            "Time in the queue after which the sender gets one delay notice (RFC 3464). PT0S: "
            "never.", ZERO, timedelta(days=30),
        ),
        SettingDefinition(
            "queue.lifetime", DURATION, "Lifetime in the queue",
            "A message that was not delivered in this time is returned to its sender.",
            MINUTE, 30 * DAY,
        ),
        SettingDefinition(
            "queue.retryDelays", SettingKind.LIST, "Retry delays",
            "Delays between delivery attempts. The last one repeats. Each varies at random by up "
            "to a fifth.", convert=validate_and_convert_retry_delays,
        ),
        SettingDefinition(
            "quota.warningEmails", SettingKind.BOOLEAN, "Quota warnings",
            "Users get an e-mail when their storage reaches the level WARNING or CRITICAL, or is "
            "full.",
        ),
        SettingDefinition(
            "securityLog.retention", DURATION, "Security log",
            "How long security events are kept. PT0S: none are written.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "signIn.failureWindow", DURATION, "Window of failed sign-ins",
            "Time in which failed sign-ins of one account or name are counted.",
            timedelta(seconds=1), DAY,
        ),
        SettingDefinition(
            "signIn.maxFailures", NUMBER, "Failed sign-ins of an account from a network",
            "After this number of wrong passwords for one account or name from one network, that "
            "network can't sign in to it for the rest of signIn.failureWindow. Each following "
            "lockout is twice as long.", 1, 10_000,
        ),
        SettingDefinition(
            "signIn.maxFailuresPerAccount", NUMBER, "Failed sign-ins of an account",
            "After this number of wrong passwords for one account from all networks in "
            "signIn.failureWindow, only networks from which the user has signed in before can sign "
            "in.", 1, 1_000_000,
        ),
        SettingDefinition(
            "signIn.maxFailuresPerNetwork", NUMBER, "Failed sign-ins from a network",
            "After this number of wrong passwords from one network (/24 of IPv4, /64 of IPv6) in "
            "signIn.networkFailureWindow, the network can't sign in to any account.", 1, 1_000_000,
        ),
        SettingDefinition(
            "signIn.maxLockout", DURATION, "Longest lockout",
            "The longest lockout after failed sign-ins.", MINUTE, DAY,
        ),
        SettingDefinition(
            "signIn.networkFailureWindow", DURATION, "Window of failed sign-ins from a network",
            "Time in which failed sign-ins from one network are counted.",
            timedelta(seconds=1), DAY,
        ),
        SettingDefinition(
            "spam.noForwardScore", NUMBER, "Spam that is not forwarded",
            "Spam score (0 to 100) from which mail is not forwarded. 101: all mail is forwarded.",
            1, 101,
        ),
        SettingDefinition(
            "spam.quarantineScore", NUMBER, "Spam that is quarantined",
            "Spam score (0 to 100) from which mail is quarantined and not delivered to Junk. 0: "
            "never.", 0, 100,
        ),
        SettingDefinition(
            "submission.maxRecipients", NUMBER, "Recipients",
            "Recipients of a message that is sent.", 1, 100_000,
        ),
        SettingDefinition(
            "subscriptions.maxLagEvents", NUMBER, "Lag of subscriptions",
            "Changes by which a subscription can lag behind. A client that lags further reads the "
            "current state again, or reads the changes by the query.", 500, 100_000_000,
        ),
        SettingDefinition(
            "tokens.idleTimeout", DURATION, "Unused tokens",
            "A new token expires if it is unused for this time.", MINUTE, CENTURY,
        ),
        SettingDefinition(
            "tokens.maxAge", DURATION, "Age of tokens",
            "A token expires at this age, even if it is in use.", MINUTE, CENTURY,
        ),
        SettingDefinition(
            "totp.driftSteps", NUMBER, "Clock drift of authenticators",
            "Steps of 30 seconds by which the clock of a TOTP authenticator can differ, in either "
            "direction. A code is accepted only once.", 0, 10,
        ),
        SettingDefinition(
            "undo.window", DURATION, "Undo",
            "How long a change to messages can be undone.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "upload.maxSize", SIZE, "Largest upload",
            "Largest file in an upload.", 1 << 16, 1024 * MIB,
        ),
        SettingDefinition(
            "users.defaultDomain", SettingKind.STRING, "Default domain",
            "Domain of the address of a new user whose username has no domain. null: the address "
            "is required.", nullable=True, convert=convert_domain,
        ),
        SettingDefinition(
            "users.defaultQuota", SIZE, "Storage",
            "Storage of a user if neither the user nor the domain has a quota. 0: unlimited.",
            0, 16 * TIB,
        ),
        SettingDefinition(
            "webhooks.allowPrivateNetworks", SettingKind.BOOLEAN, "Webhooks in private networks",
            "Webhooks can use private, loopback and link-local addresses.",
        ),
    )
}  # fmt: skip
