"""What arguments and values of enums are, in words: those that say the same wherever they stand."""

from collections.abc import Iterable

from graphql import (
    GraphQLDirective,
    GraphQLEnumType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
)

TYPES = {
    "Query": "What can be read.",
    "Mutation": "What can be changed. Fields run one after another, each a unit of its own; "
    "@atomic makes one of all.",
    "Subscription": "What can be followed.",
}
ARGUMENTS = {
    "action": "Only rules that say this.",
    "actor": "Only what this user did.",
    "address": "Any spelling, with or without a label.",
    "queueId": "Of a message that came in, or is on its way out.",
    "messageId": "Message-ID, with or without angle brackets.",
    "sender": "Who would send it; then rules about senders count.",
    "allowWildcard": "As mail is delivered: also by pattern, and without a label.",
    "after": "Behind this cursor; of a subscription: what came later, nothing given = from now.",
    "batchWindow": "Least time between two batches; the first goes at once.",
    "before": "Ahead of this cursor, with last.",
    "by": "Which one.",
    "exact": "Only the entry whose key is the prefix.",
    "expand": "A template such as %{user}, with %{local} and %{domain} too; it comes as expand.",
    "fields": "Only these; none = all.",
    "check": "Look up what DNS says now.",
    "filter": "Only those for which all of this holds.",
    "first": "How many from the beginning, at most 250; 20 where neither first nor last is given.",
    "id": "Global id.",
    "ids": "Global ids, at most 250.",
    "input": "All that the mutation takes.",
    "key": "Key of the setting.",
    "kinds": "Only these kinds; none = all.",
    "last": "How many from the end, at most 250.",
    "mailboxes": "Only what happens in these folders; none = all.",
    "markAsSeen": r"Set \Seen, as reading it in a mail program does.",
    "mutation": "Only this mutation.",
    "maxBytes": "Cut after so many bytes.",
    "name": "Name of the header field, in any case.",
    "noValue": "Keys alone: each value is null.",
    "offset": "Where to begin, in bytes, counted from 0.",
    "orderBy": "Order of the list.",
    "prefix": "How keys begin; one that ends with a slash is a level, and nothing is the first.",
    "query": "Partial match.",
    "recurse": "The levels below too.",
    "remoteImages": "Let images from elsewhere in: their servers learn that it is read.",
    "sanitize": "Without scripts, forms and what else is dangerous in a page.",
    "section": "IMAP section, such as 1.2, HEADER or 2.MIME.",
    "shared": "Of those that everybody may read.",
    "since": "From then on.",
    "masks": "Only paths that fit one: * is anything, % anything within a level.",
    "prependPrefix": "Names with /private or /shared before them.",
    "specialUse": "Only folders with a role.",
    "subscribed": "Only folders that are, or are not.",
    "type": "One that is among theirs: exact, a prefix with .*, or * for all.",
    "users": "Whose; nothing given = the viewer's.",
    "showAll": "Also those that end after a time unused.",
    "service": "One of api, imap, lmtp, pop3 and smtp.",
    "showHidden": "Also folders that are hidden.",
    "store": "Named store.",
    "states": "Only in one of these states.",
    "targetId": "Only what was done to this.",
    "until": "Earlier than this.",
    "user": "Whose; nothing given = the viewer's.",
    "userdbOnly": "Only what is of the account itself.",
}
DIRECTIVES = {
    "auth": {
        "adminPermission": "What a DOMAIN_ADMIN must have been given as well.",
        "role": "The least role.",
        "scope": "What the credential must be good for.",
        "userPermission": "What a USER must have been given as well.",
    },
    "cost": {
        "perItem": "Paid for each object that comes, not once.",
        "weight": "What the field itself costs.",
    },
}
VALUES = {
    "AuditRoad": {
        "STORED": "It was in a folder when the audit began.",
        "ARCHIVED": "It was deleted, and kept in the archive.",
        "RECEIVED": "It came.",
        "SAVED": "It was put into a folder, or kept as a draft.",
        "SENT": "It was sent.",
    },
    "ExportFormat": {
        "MBOX": "One mailbox file, quoted as mboxrd: the messages alone, for other programs.",
        "EML_ZIP": "A ZIP with an .eml file for each message, in folders.",
        "MAILDIR_TAR": "A tar of a Maildir++.",
        "JSON": "A JSON object a line, each with a message in base64.",
    },
    "ArchiveRestorePlace": {
        "ORIGINAL": "The folder it was deleted from.",
        "NEW_MAILBOX": "One folder for all, named after the day.",
    },
    "SenderAction": {
        "ALLOW": "It is never spam.",
        "BLOCK": "It is always spam: it goes to Junk.",
    },
    "AddressKind": {
        "MAILBOX": "Delivers to user.",
        "FORWARD": "Delivers to targets.",
        "DISCARD": "Accepted and dropped.",
        "LEARN_SPAM": "Trains the spam filter with it.",
        "LEARN_HAM": "Trains as good mail.",
    },
    "AdminPermission": {
        "SYNCJOBS": "Connectors of users.",
        "QUARANTINE": "Quarantine of users.",
        "LOGIN_AS": "To act as a user.",
        "WEBMAIL_ACCESS": "Who may use browser clients.",
        "APP_PASSWDS": "Application passwords of users.",
        "BCC_MAPS": "BCC rules.",
        "PUSHOVER": "Push channels of users.",
        "FILTERS": "Filters and scripts of users.",
        "RATELIMIT": "Sending rates.",
        "SPAM_POLICY": "Sender rules and spam thresholds.",
        "EXTEND_SENDER_ACL": "Further senders of users.",
        "UNLIMITED_QUOTA": "To give a quota of 0, which is unlimited.",
        "PROTOCOL_ACCESS": "Protocols of users.",
        "SMTP_IP_ACCESS": "Where users may submit from.",
        "ALIAS_DOMAINS": "Domain aliases.",
        "DOMAIN_DESC": "The description of the domain.",
    },
    "BccDirection": {
        "SENDER": "What users send with this sender, by its envelope.",
        "RECIPIENT": "What comes for this recipient, from outside or from users.",
    },
    "AppPasswordScope": {
        "IMAP": "Client protocol.",
        "POP3": "Client protocol.",
        "SMTP": "Submission protocol.",
        "SIEVE": "Script management.",
        "MAIL_READ": "Own mail by this API, read only.",
        "MAIL": "Own mail by this API, read and write.",
        "SUBMIT": "Sending by this API only.",
        "ALL": "All of these; never MASTER.",
    },
    "ChangeKind": {
        "MAILBOX_CREATED": "A folder was made.",
        "MAILBOX_UPDATED": "A folder was changed or repaired.",
        "MAILBOX_RENAMED": "A folder has another path.",
        "MAILBOX_DELETED": "A folder is gone.",
        "MESSAGE_ADDED": "A message came, was sent, or was put in.",
        "MESSAGE_UPDATED": "Flags, keywords, expiry or data of a message changed; of a draft that "
        "was saved again also its content, uid and perhaps folder.",
        "MESSAGE_MOVED": "A message lies in another folder, with another uid.",
        "MESSAGE_DELETED": "A message is gone for good.",
        "MESSAGE_ARCHIVED": "A message was deleted, and can still be brought back.",
        "MESSAGE_RESTORED": "A message was brought back.",
        "SUBMISSION_CHANGED": "A message on its way moved on.",
        "FILE_CHANGED": "A file, or a link to it.",
        "ADDRESS_CHANGED": "An address was made, changed or deleted.",
        "IDENTITY_CHANGED": "What is said of a sender was made, changed or taken back.",
        "USER_CHANGED": "An account was made, changed or deleted.",
        "DOMAIN_CHANGED": "A domain was made, changed or deleted.",
        "TASK_CHANGED": "Background work moved on.",
        "SECURITY_EVENT": "Somebody signed in, tried to, or changed a credential.",
        "SETTING_CHANGED": "A setting has another value.",
        "KEY_VALUE_CHANGED": "An entry of a key-value store was set, counted or removed.",
        "LABEL_CHANGED": "A label was made, changed or removed.",
        "SENDER_RULE_CHANGED": "A rule about senders was made, turned or deleted.",
        "SAVED_SEARCH_CHANGED": "A search was kept, changed, or is kept no longer.",
        "THREAD_CHANGED": "A conversation was muted or unmuted, or became part of another.",
        "AUTOREPLY_CHANGED": "The automatic answer was set, changed or removed.",
        "LIMIT_REACHED": "A limit of the account is reached, or storage has passed a mark.",
        "RESYNC": "The stream cannot go on from the cursor given.",
    },
    "AutoreplySilence": {
        "OFF": "It is not enabled.",
        "NOT_NOW": "Its time has not begun, or is over.",
        "EMPTY": "There is nothing to say to this sender.",
        "SUSPENDED": "The account is suspended.",
        "NO_SENDER": "The message comes from nobody, such as a report.",
        "AUTOMATIC_SENDER": "An address such as mailer-daemon, no-reply, or of a list's owner.",
        "AUTOMATIC_MAIL": "Not written by a person (Auto-Submitted, reports).",
        "LIST_MAIL": "Sent to many (List-…, Precedence).",
        "SUPPRESSED": "The message asks for none (X-Auto-Response-Suppress).",
        "SPAM": "It is unwanted, or its sender forged.",
        "OWN": "The sender is the account itself.",
        "NOT_ADDRESSED": "The account stands neither in To nor in Cc.",
        "OTHER_ADDRESS": "It was written to an address that does not answer.",
        "ANSWERED": "The sender had an answer not long ago.",
        "LIMIT": "The account has answered 2,000 times in 24 hours.",
    },
    "ContentEncoding": {
        "BASE64": "Base64 (RFC 4648).",
        "HEX": "Two digits a byte.",
        "UTF8": "Text as it is.",
    },
    "DeliveryState": {
        "PENDING": "Not tried yet.",
        "DEFERRED": "Refused for now, will be tried again.",
        "DELIVERED": "With the server of the recipient.",
        "RELAYED": "With the next hop.",
        "BOUNCED": "Refused for good.",
        "EXPIRED": "Given up after five days.",
        "CANCELLED": "Taken back.",
    },
    "DnsState": {
        "OK": "It says what it should.",
        "MISSING": "It says that there is no such record.",
        "DIFFERENT": "It says something else.",
        "UNKNOWN": "Not looked up, not configured, or DNS does not answer.",
    },
    "ErrorCode": {
        "VALIDATION": "The input breaks a rule.",
        "NOT_FOUND": "No such thing, or none that the viewer may see.",
        "CONFLICT": "It collides with what exists.",
        "STALE": "It changed meanwhile.",
        "FORBIDDEN": "The credential does not allow it.",
        "FORBIDDEN_OPERATION": "Nobody may do this to this thing.",
        "AUTHENTICATION_FAILED": "Wrong credentials.",
        "LIMIT_REACHED": "More than domain or platform allow.",
        "QUOTA_EXCEEDED": "The storage is full.",
        "RATE_LIMITED": "Too often: wait.",
        "IN_USE": "Open sessions prevent it.",
        "NO_SESSION": "Nobody is connected.",
        "UNAVAILABLE": "A component does not answer.",
        "ABORTED": "Given up with the others of its unit.",
    },
    "DelimiterAction": {
        "NONE": "Delivered as if there were no label.",
        "SUBFOLDER": "Into a folder that is called like the label, made where it is missing.",
        "SUBJECT": "The label is put before the subject.",
    },
    "LogComponent": {
        "MTA": "It takes mail in, and sends it.",
        "SPAM": "It judges what is unwanted.",
        "STORE": "It keeps messages.",
    },
    "LimitKind": {
        "STORAGE": "Bytes of messages.",
        "RECIPIENTS": "Addresses written to, per 24 h.",
        "RECEIVED": "Messages received, per hour.",
        "FORWARDS": "Messages sent on to targets, per 24 h.",
    },
    "LimitSource": {
        "USER": "It is set on the account.",
        "DOMAIN": "It is what the domain gives its users.",
        "PLATFORM": "It is what the platform gives everybody.",
    },
    "MessageOrder": {
        "RECEIVED_DESC": "The newest arrival first.",
        "RECEIVED_ASC": "The oldest arrival first.",
        "RELEVANCE": "By where the words of a search stand: subject, people, file names, beginning "
        "of the text. Of the newest 500 that match; for searches with words.",
    },
    "FileAttachmentMode": {
        "ATTACH": "In the message.",
        "LINK": "Link to the file.",
        "SHARE_RO": "Link to a read-only copy as of now.",
        "SHARE_RW": "Link that can also be written to.",
    },
    "OrderDirection": {"ASC": "The oldest first.", "DESC": "The newest first."},
    "PushKind": {
        "PUSHOVER": "Pushover.",
        "WEB_PUSH": "A browser, by the push service it names (RFC 8030).",
        "HTTP": "An address that takes text, such as a topic of ntfy.",
    },
    "Priority": {"HIGH": "Urgent.", "NORMAL": "As usual.", "LOW": "Not urgent."},
    "ProtocolScope": {
        "IMAP": "Reading with a mail program.",
        "POP3": "Fetching with a mail program.",
        "SMTP": "Sending with a mail program.",
    },
    "ReferenceAction": {
        "REPLY": "Answer to whoever wrote.",
        "REPLY_ALL": "Answer to all who had it.",
        "FORWARD": "Pass it on.",
    },
    "ResyncReason": {
        "CURSOR_EXPIRED": "Older than the journal is kept.",
        "CURSOR_UNKNOWN": "Of another store.",
        "OVERFLOW": "The client read too slowly, or was away too long.",
    },
    "Role": {
        "PUBLIC": "Nobody: not signed in.",
        "USER": "Own account.",
        "DOMAIN_ADMIN": "Users, addresses and settings of some domains.",
        "ADMIN": "Every domain and user, not the machine.",
        "ROOT": "Everything.",
    },
    "Scope": {
        "MASTER": "Everything the role may.",
        "READ": "Queries and subscriptions only.",
        "MAIL_READ": "Own mail, read only.",
        "MAIL": "Own mail, read and write.",
        "SUBMIT": "Sending only.",
        "SETTINGS": "Own account settings.",
        "IMAP": "Client protocol.",
        "POP3": "Client protocol.",
        "SMTP": "Submission protocol.",
        "SIEVE": "Script management.",
    },
    "ShareRight": {
        "LOOKUP": "See the folder; it goes with any other right.",
        "READ": "See its messages and what is in them.",
        "SEEN": "Mark them as read and unread.",
        "WRITE": "Change other flags and keywords, and what applications keep with a message.",
        "INSERT": "Put messages into it.",
        "DELETE": "Mark messages as deleted, and take them out: to other folders, or the archive.",
        "EXPUNGE": "Delete messages for good.",
        "CREATE": "Create folders below it.",
        "ADMIN": "See whom it is shared with, and share it.",
        "POST": "Send as the owner.",
    },
    "SpecialUse": {
        "INBOX": "Where mail arrives.",
        "DRAFTS": "Messages being written.",
        "JUNK": "Unwanted mail.",
        "SENT": "Copies of what was sent.",
        "TRASH": "Thrown away.",
        "ARCHIVE": "Kept out of the way.",
        "FLAGGED": "Marked messages.",
        "ALL": "All messages.",
        "SNOOZED": "Put off until later.",
        "SCHEDULED": "To be sent later.",
    },
    "StorageTier": {
        "HOT": "Read fast: in the store's own rows, or in the first store of large bytes.",
        "COLD": "In the second, for what is seldom read.",
    },
    "SubmissionState": {
        "SCHEDULED": "Waits for its time.",
        "HELD_FOR_UNDO": "Can still be taken back.",
        "QUEUED": "Waits for its turn.",
        "SENDING": "On its way.",
        "SENT": "With all recipients.",
        "PARTIAL": "With some recipients, refused by others.",
        "FAILED": "With no recipient.",
        "CANCELLED": "Taken back.",
    },
    "PostState": {
        "WAITING": "Not taken yet.",
        "DONE": "Taken: the answer was 2xx.",
        "DEAD": "Given up.",
    },
    "TaskState": {
        "QUEUED": "Waits for its turn.",
        "RUNNING": "Being done.",
        "SUCCEEDED": "Done.",
        "FAILED": "Given up.",
        "CANCELLED": "Stopped on request; what was done stays.",
    },
    "TwoFactorMethod": {
        "TOTP": "A code by time (RFC 6238).",
        "CUSTOM": "Something the calling application checks.",
        "WEBAUTHN": "A security key or passkey.",
    },
    "UsageKind": {
        "RECIPIENTS": "Addresses written to, per 24 h.",
        "RECEIVED": "Messages received, per hour.",
        "AUTOREPLIES": "Automatic answers, per 24 h.",
        "FORWARDS": "Messages sent on to targets, per 24 h.",
    },
    "UsageLevel": {
        "NORMAL": "Below the marks, or unlimited.",
        "WARNING": "From the setting limits.warning on, by default 80 percent.",
        "CRITICAL": "From the setting limits.critical on, by default 95 percent.",
        "FULL": "All of it.",
    },
    "UserOrder": {
        "USERNAME": "By user name, as names are compared.",
        "CREATED": "The oldest account first.",
        "QUOTA_USED": "Who stores most first.",
        "LAST_LOGIN": "Who signed in last first; who never did comes at the end.",
    },
    "UserPermission": {
        "SPAM_ALIAS": "Temporary addresses.",
        "TLS_POLICY": "Encrypted delivery only.",
        "SPAM_SCORE": "Spam thresholds.",
        "SPAM_POLICY": "Own sender rules.",
        "DELIMITER_ACTION": "What tagged addresses do.",
        "SYNCJOBS": "Connectors.",
        "CLIENT_RESET": "To make clients start afresh.",
        "QUARANTINE": "Own held mail.",
        "PROFILE_RESET": "To forget preferences of browser clients.",
        "QUARANTINE_ATTACHMENTS": "Attachments of held mail.",
        "QUARANTINE_NOTIFICATION": "Interval of the summaries.",
        "APP_PASSWDS": "Application passwords.",
        "PUSHOVER": "Push channels.",
    },
    "WebauthnCeremony": {
        "REGISTRATION": "To add a key.",
        "AUTHENTICATION": "To prove one that is there.",
    },
}


def describe(schema: GraphQLSchema) -> None:
    """Give their words to all arguments, enum values and root types that have none yet."""
    for kind in schema.type_map.values():
        if kind.name.startswith("__"):
            continue
        if kind.name in TYPES:
            kind.description = TYPES[kind.name]
        if isinstance(kind, GraphQLEnumType):
            for name, value in kind.values.items():
                value.description = value.description or VALUES.get(kind.name, {}).get(name)
        if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            for field in kind.fields.values():
                for name, argument in field.args.items():
                    argument.description = argument.description or ARGUMENTS.get(name)
    describe_directives(schema.directives)


def describe_directives(directives: Iterable[GraphQLDirective]) -> None:
    """Give their words to the arguments of our directives."""
    for directive in directives:
        for name, argument in directive.args.items():
            argument.description = argument.description or DIRECTIVES.get(directive.name, {}).get(
                name
            )
