"""Descriptions of enum values of roles, scopes and permissions."""

RIGHT_VALUE_DESCRIPTIONS = {
    "AdminPermission": {
        "CONNECTORS": "Manages connectors of users.",
        "QUARANTINE": "Manages quarantined messages of users, and the interval of their digests.",
        "IMPERSONATE": (
            "Acts as a user: reads, changes and sends mail of the user. Also creates API keys of "
            "the user."
        ),
        "WEBMAIL_ACCESS": "Allows or denies users the access by web mail clients.",
        "APP_PASSWORDS": "Manages application passwords of users, and revokes their OAuth grants.",
        "BCC_RULES": "Manages BCC rules of the domains, and "
        "sets `bcc` and `replyTo` of identities of users.",
        "PUSH_CHANNELS": "Manages push channels of users. To create "
        "or change one, IMPERSONATE is also needed.",
        "FILTERS": "Manages filters and Sieve scripts of users.",
        "RATE_LIMITS": "Sets sending limits of users and domains, and resets counters of users.",
        "SENDER_RULES": "Manages sender rules of users and domains.",
        "SPAM_POLICY": "Sets the spam thresholds of users.",
        "ALLOWED_SENDERS": "Sets further sender addresses that users can send as.",
        "UNLIMITED_QUOTA": "Gives users unlimited storage.",
        "PROTOCOL_ACCESS": "Allows or denies users SMTP submission, and the IMAP and POP3 "
        "servers beside Merganser.",
        "SUBMISSION_NETWORKS": "Sets the networks that users can submit mail from.",
        "ALIAS_DOMAINS": "Manages alias domains of the domains.",
        "DOMAIN_DESCRIPTION": "Changes the description of the domains.",
    },
    "AppPasswordScope": {
        "IMAP": "Sign-in to an IMAP server beside Merganser, which checks passwords with "
        "`passwordVerify`.",
        "POP3": "Sign-in to a POP3 server beside Merganser, which checks passwords with "
        "`passwordVerify`.",
        "SMTP": "Sign-in to message submission (RFC 6409).",
        "SIEVE": "Reading and changing Sieve scripts by this API.",
        "MAIL_READ": "Reading the user's mail by this API.",
        "MAIL": "Reading and changing the user's mail by this API.",
        "SUBMIT": "Sending messages by this API.",
        "ALL": "All protocols and rights that this enum lists.",
    },
    "Role": {
        "PUBLIC": "No credential, or a sign-in that lacks its second factor.",
        "USER": "Access to the user's account.",
        "DOMAIN_ADMIN": "Administration of the users, addresses and settings of some domains.",
        "ADMIN": (
            "Administration of every domain, of the platform's settings, and of users without the "
            "role ROOT. An ADMIN can't change the object stores, caches, nodes and components of "
            "the servers."
        ),
        "ROOT": "Access to everything.",
    },
    "Scope": {
        "FULL": "Everything that the role allows.",
        "READ": (
            "Queries and subscriptions that don't require FULL; no mutations. It includes "
            "MAIL_READ."
        ),
        "MAIL_READ": "Reading the user's mail.",
        "MAIL": "Reading and changing the user's mail.",
        "SUBMIT": "Sending messages.",
        "SETTINGS": "Changing the settings of the user's account. "
        "Most queries of settings require READ.",
        "IMAP": "Sign-in to an IMAP server beside Merganser, which checks passwords with "
        "`passwordVerify`.",
        "POP3": "Sign-in to a POP3 server beside Merganser, which checks passwords with "
        "`passwordVerify`.",
        "SMTP": "Sign-in to message submission (RFC 6409).",
        "SIEVE": "Reading and changing Sieve scripts by this API.",
        "SCIM": "Provisioning of accounts and groups by SCIM 2.0 (RFC 7644), for an API key that "
        "is restricted to domains.",
    },
    "UserPermission": {
        "TEMPORARY_ADDRESSES": "Manages temporary addresses of the account.",
        "TLS_POLICY": "Sets whether mail to and from the account must use TLS.",
        "SENDER_RULES": "Manages sender rules of the account.",
        "SPAM_POLICY": "Sets the spam thresholds of the account.",
        "SUBADDRESS_ACTION": (
            "Sets what happens to mail for addresses with a subaddress (`+label`)."
        ),
        "CONNECTORS": "Manages connectors of the account.",
        "SYNC_RESET": "Makes mail programs synchronize the account from the beginning.",
        "QUARANTINE": "Reads, releases and deletes quarantined messages of the account.",
        "PREFERENCES_RESET": "Deletes stored preferences of web mail clients.",
        "QUARANTINE_ATTACHMENTS": "Downloads quarantined messages and their attachments.",
        "QUARANTINE_NOTIFICATION": "Sets the interval of the quarantine digests.",
        "APP_PASSWORDS": "Manages application passwords of the account.",
        "PUSH_CHANNELS": "Manages push channels of the account.",
    },
}
