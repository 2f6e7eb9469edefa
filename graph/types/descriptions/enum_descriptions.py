"""Descriptions of enum values."""

from graph.types.descriptions.certificate_enum_descriptions import CERTIFICATE_VALUE_DESCRIPTIONS
from graph.types.descriptions.connector_enum_descriptions import CONNECTOR_VALUE_DESCRIPTIONS
from graph.types.descriptions.constraint_descriptions import CONSTRAINT_DESCRIPTIONS
from graph.types.descriptions.event_type_descriptions import EVENT_TYPE_DESCRIPTIONS
from graph.types.descriptions.log_enum_descriptions import LOG_VALUE_DESCRIPTIONS
from graph.types.descriptions.message_order_descriptions import MESSAGE_ORDER_DESCRIPTIONS
from graph.types.descriptions.metric_enum_descriptions import METRIC_VALUE_DESCRIPTIONS
from graph.types.descriptions.oauth_enum_descriptions import OAUTH_ENUM_DESCRIPTIONS
from graph.types.descriptions.operation_enum_descriptions import OPERATION_VALUE_DESCRIPTIONS
from graph.types.descriptions.right_enum_descriptions import RIGHT_VALUE_DESCRIPTIONS
from graph.types.order_enums import ORDER_VALUE_DESCRIPTIONS
from models.events.event_types import ChangeType, WebhookEventType

VALUE_DESCRIPTIONS = {
    "LegalHoldAccessAction": {
        "LIST": "The administrator read a page of the copies, or one copy.",
        "EXPORT": "The administrator downloaded all copies as an mbox file.",
    },
    "AttachmentDisposition": {
        "ATTACHMENT": "The part is a file. Unknown disposition types count as this one.",
        "INLINE": "The part is shown within the message.",
    },
    "AuthenticationResultCode": {
        "FAIL": "The message failed the check: the client or signature is not authorized by the "
        "domain.",
        "NEUTRAL": "The domain makes no statement, or a DKIM signature has an invalid form.",
        "NONE": "There is nothing to check: no SPF or DMARC record, no signature, no ARC chain.",
        "PASS": "The message passed the check.",
        "PERMERROR": "A record or signature is permanently invalid.",
        "POLICY": "The signature is valid, but local policy does not accept it.",
        "SOFTFAIL": "SPF: the host is probably not authorized.",
        "TEMPERROR": "The check was not possible at that time, as DNS did not answer.",
    },
    "CalendarMethod": {
        "ADD": "Adds instances to a recurring event.",
        "CANCEL": "Cancels an event.",
        "COUNTER": "An attendee proposes a change to the organizer.",
        "DECLINECOUNTER": "The organizer declines the proposed change.",
        "PUBLISH": "Publishes an event. No reply is expected.",
        "REFRESH": "An attendee asks for the current version of an event.",
        "REPLY": "An attendee answers the organizer.",
        "REQUEST": "Invites attendees, or updates an invitation.",
    },
    "CopyOrigin": {
        "STORED": "The message was in a mailbox when the legal hold began.",
        "DELETED": "The message was deleted, but restorable, when the legal hold began.",
        "RECEIVED": "The account received the message during the legal hold.",
        "SAVED": "The message was added to a mailbox or saved as a draft during the legal hold.",
        "SENT": "The account sent the message during the legal hold.",
    },
    "ExportFormat": {
        "MBOX": "One mbox file with mboxrd quoting. It contains messages only.",
        "EML_ZIP": (
            "ZIP archive with an `.eml` file for each message, in a folder for each mailbox."
        ),
        "MAILDIR_TAR": "Tar archive of a Maildir++.",
        "JSON": "One JSON object in each line, each with a message in base64.",
    },
    "UserFileFormat": {
        "CSV": "Comma-separated values (RFC 4180), with the names of the fields in the first line.",
        "JSON_LINES": "A JSON object in each line.",
    },
    "RestoreDestination": {
        "ORIGINAL": (
            "Mailbox that each message was deleted from, else the one with its path, else INBOX. "
            "Snoozed messages return to INBOX."
        ),
        "NEW_MAILBOX": "One mailbox for all messages, which is created if it is missing, such as "
        '"Restored (2030-01-01)" in the language of the user.',
    },
    "SenderAction": {
        "ALLOW": "Mail of the sender is not treated as spam, unless it has a virus, or fails "
        "DMARC without SPF proof of a matching envelope sender. Filters can still decide "
        "otherwise.",
        "BLOCK": (
            "Mail of the sender is blocked, that is treated as spam: it is delivered to Junk, or "
            "is quarantined or refused if its spam score is high enough. Filters, and a spam "
            "level of 100 of the user, take precedence."
        ),
    },
    "AddressKind": {
        "MAILBOX": "Delivers mail to the mailboxes of a user.",
        "FORWARD": "Forwards mail to the targets of the address.",
        "DISCARD": "Accepts mail and drops it.",
        "LEARN_SPAM": (
            "Trains the spam filter with spam: the messages attached to the received mail, or "
            "without any the mail itself. The mail is not stored."
        ),
        "LEARN_HAM": (
            "Trains the spam filter with wanted mail: the messages attached to the received mail, "
            "or without any the mail itself. The mail is not stored."
        ),
        "RESOURCE": "Books a resource, such as a room, by invitations. Other mail is refused.",
    },
    "BookingPolicy": {
        "ALWAYS_FREE": (
            "Accepts every invitation to an event that can be booked, and shows no bookings. "
            "An event that is over or more than five years ahead can't be booked."
        ),
        "UNLIMITED_SHOW_BUSY": (
            "Accepts every invitation to an event that can be booked, and shows the "
            "bookings. An event that is over or more than five years ahead can't be booked."
        ),
        "LIMITED": (
            "Accepts an invitation if all its occurrences fit the booking limit, and "
            "declines it otherwise. Of an endless series, the occurrences of the next five "
            "years count, at most 1,000."
        ),
    },
    "ResourceKind": {
        "LOCATION": "Room or other place.",
        "THING": "Thing, such as a projector or a car.",
        "GROUP": "Group of people.",
    },
    "BccDirection": {
        "SENDER": "Copies mail that users send with this envelope sender.",
        "RECIPIENT": (
            "Copies mail for this recipient when an account stores it, from remote senders and "
            "from users. Mail that is only forwarded, discarded or held in quarantine is not "
            "copied."
        ),
    },
    "EventType": EVENT_TYPE_DESCRIPTIONS,
    "ChangeType": {kind.value: EVENT_TYPE_DESCRIPTIONS[kind] for kind in ChangeType},
    "WebhookEventType": {kind.value: EVENT_TYPE_DESCRIPTIONS[kind] for kind in WebhookEventType},
    **OAUTH_ENUM_DESCRIPTIONS,
    "DkimAlgorithm": {
        "RSA": "RSA-SHA256 (RFC 8301). Every verifier supports it.",
        "ED25519": "Ed25519-SHA256 (RFC 8463). Short and fast, but not supported by every "
        "verifier: use it in addition to RSA.",
    },
    "DkimKeyState": {
        "PENDING": (
            "The key signs when the server finds its record in DNS, or after `dkimKeyActivate`. "
            "The server looks after one minute, later less often, at least once an hour. A pending "
            "key of `*` is never activated by a record."
        ),
        "ACTIVE": "The key signs messages.",
        "RETIRED": (
            "The key no longer signs. Its record must stay in DNS for messages in transit. The key "
            "is deleted after 14 days (by default), but not while its domain has no active key."
        ),
    },
    "TlsPolicyLevel": {
        "NONE": "No TLS, even if the server offers it. A relay host or transport that requires "
        "TLS, or has a username, still uses TLS.",
        "MAY": "TLS if the server offers it, with any certificate.",
        "ENCRYPT": "TLS with any certificate. Without TLS the delivery is deferred. A relay host "
        "or transport with a username still needs a verified certificate.",
        "DANE": (
            "TLS by the TLSA records of the server (RFC 7672). Without TLSA records it has the "
            "effect of MAY, with unusable records that of ENCRYPT."
        ),
        "DANE_ONLY": "TLS by TLSA records (RFC 7672). Without such a record the delivery is "
        "deferred.",
        "FINGERPRINT": "TLS with a certificate that has one of the configured fingerprints, else "
        "the delivery is deferred.",
        "VERIFY": "TLS with a certificate for the MX host name, or for a name in `match`, else "
        "the delivery is deferred.",
        "SECURE": "TLS with a certificate for the destination domain or a subdomain, or for a "
        "name in `match`, else the delivery is deferred.",
    },
    "AutoreplySuppression": {
        "OFF": "The autoreply is not enabled.",
        "NOT_NOW": "The period of the autoreply has not begun, or has ended.",
        "EMPTY": "The autoreply has no text for this sender.",
        "SUSPENDED": "The account is suspended.",
        "NO_SENDER": "The envelope sender is empty or malformed, as in a delivery report.",
        "AUTOMATIC_SENDER": "The sender is an address of a program, such as mailer-daemon, "
        "no-reply or the owner of a list.",
        "AUTOMATIC_MAIL": "A program wrote the message (`Auto-Submitted`, a report).",
        "LIST_MAIL": "The message is from a mailing list or bulk mail (`List-…`, `Precedence`).",
        "SUPPRESSED": "The message asks for no reply (`X-Auto-Response-Suppress`).",
        "SPAM": "The message is spam, or fails DMARC.",
        "OWN": "The sender is the account itself.",
        "NOT_ADDRESSED": "No address of the account is in To or Cc.",
        "OTHER_ADDRESS": "The autoreply is limited to other addresses of the account.",
        "ANSWERED": "The sender got a reply within the interval of the autoreply.",
        "LIMIT": "The autoreply was sent 2,000 times in 24 hours.",
    },
    "ContentEncoding": {
        "BASE64": "The text is base64 (RFC 4648).",
        "HEX": "The text has two hexadecimal digits for each byte.",
        "UTF8": "The text itself is the content, in UTF-8.",
    },
    "DeliveryState": {
        "PENDING": "The first delivery attempt has not ended yet.",
        "DEFERRED": "The last attempt failed temporarily. Another attempt follows.",
        "DELIVERED": (
            "The mail server of the recipient has accepted the message. For an account of this "
            "platform, the message was stored."
        ),
        "RELAYED": (
            "A relay host, the next hop of a transport, or a webhook has accepted the message."
        ),
        "BOUNCED": (
            "The recipient was refused permanently, at once or by a later delivery report, "
            "or `queueDelete` with `notifySender` removed the delivery."
        ),
        "EXPIRED": "No attempt succeeded until the queue lifetime ended.",
        "CANCELLED": "The delivery was cancelled before it succeeded.",
    },
    "QueueName": {
        "INCOMING": "The entry waits for its first delivery attempt.",
        "ACTIVE": "A delivery attempt of the entry is running.",
        "DEFERRED": "The last delivery attempt failed temporarily. The entry waits for the next "
        "one.",
        "HOLD": "An administrator holds the entry.",
    },
    "DnsState": {
        "OK": "DNS has the expected record.",
        "MISSING": "DNS has no such record.",
        "MISMATCH": "DNS has a different record.",
        "UNKNOWN": (
            "The record was not looked up, is not configured, or DNS does not answer. Also: a TLSA "
            "record has another form than `3 1 1`, which is not compared."
        ),
    },
    "ErrorCode": {
        "CONNECTOR_FAILURE": "The remote server of a connector can't be reached, or refuses the "
        "connection.",
        "VALIDATION": "A value of the input breaks a rule.",
        "NOT_FOUND": "The object does not exist, or the caller can't see it.",
        "CONFLICT": "The change conflicts with an existing object.",
        "STALE": "The object was changed after the caller read it.",
        "FORBIDDEN": "The credential lacks a role, scope or permission.",
        "FORBIDDEN_OPERATION": "No credential allows this operation on the object.",
        "AUTHENTICATION_FAILED": "A password, code or second factor in the input is wrong, "
        "missing or expired. A request without a valid credential gets UNAUTHENTICATED in the "
        "top-level `errors`.",
        "LIMIT_REACHED": "A count or size limit of the request, a user, a domain or the platform "
        "would be exceeded.",
        "QUOTA_EXCEEDED": "The change would exceed the storage quota of the account.",
        "RATE_LIMITED": "The caller sent too many requests. The error has the time to wait in "
        "`retryAfter`.",
        "IN_USE": "Open sessions or running tasks of the accounts prevent the change.",
        "NO_SESSION": "No node has one of the sessions to end, and no access token was revoked.",
        "USER_OFFLINE": "No client of the user is subscribed to `composeRequested`.",
        "UNAVAILABLE": (
            "A component that the mutation needs is missing, busy or does not answer, such as DNS. "
            "Also: concurrent requests changed the same objects."
        ),
        "SIEVE_COMPILE": "A Sieve script does not compile.",
        "DAMAGED": "Stored bytes that the mutation needs are lost or damaged.",
        "ABORTED": "The field was rolled back, because another field of its `@atomic` request "
        "failed.",
    },
    "Frequency": {
        "NEVER": "No digest is sent.",
        "HOURLY": "A digest is sent one hour after the first new quarantined message.",
        "DAILY": "A digest is sent one day after the first new quarantined message.",
        "WEEKLY": (
            "A digest is sent one week after the first new quarantined message, or after half of "
            "the retention of the quarantine if that is shorter."
        ),
    },
    "SubaddressAction": {
        "NONE": "Delivers the message as if the address had no subaddress.",
        "SUBFOLDER": (
            "Delivers the message to the mailbox `INBOX/label`, with the label in lower case. The "
            "mailbox is created if INBOX contains fewer than 100 mailboxes, otherwise the message "
            "goes to INBOX. Spam is delivered to Junk."
        ),
        "SUBJECT": "Puts `[label]` before the subject of the stored message.",
    },
    "RatePeriod": {
        "SECOND": "Messages are counted in windows of one second.",
        "MINUTE": "Messages are counted in windows of one minute.",
        "HOUR": "Messages are counted in windows of one hour.",
        "DAY": "Messages are counted in windows of 24 hours.",
    },
    "LimitKind": {
        "STORAGE": "Limit of the bytes of stored messages.",
        "RECIPIENTS": "Limit of the recipients that the account writes to in 24 hours.",
        "RECEIVED": "Limit of the messages that the account receives in one hour.",
        "FORWARDS": "Limit of the messages that the account forwards to targets in 24 hours.",
        "RATE": "Limit of the messages sent in a period by the account, its domain or the "
        "platform.",
    },
    "LimitSource": {
        "USER": "The limit is set on the account.",
        "DOMAIN": "The limit is set on the domain.",
        "PLATFORM": "The limit is a setting of the platform.",
    },
    "FileAttachmentMode": {
        "ATTACH": "Attaches the file to the message.",
        "LINK": "Adds a link to the current content of the file.",
        "READ_ONLY_LINK": "Adds a link to a copy of the file as it is when the link is created.",
        "WRITABLE_LINK": "Adds a link that can be used to read and replace the file.",
    },
    "ForwardTargetKind": {
        "MAIL": "An email address.",
        "RELAY": "A relay host that receives the message by SMTP, given as an `smtp://` or "
        "`smtps://` URL.",
        "HTTP": "A web page that receives the message in an HTTP POST request.",
    },
    "PushKind": {
        "PUSHOVER": "The service Pushover.",
        "WEB_PUSH": "A browser, through its Web Push service (RFC 8030).",
        "HTTP": "A URL that accepts text by POST, such as a topic of ntfy.",
    },
    "Priority": {
        "HIGH": "The message is urgent (`X-Priority: 1`, `Importance: high`).",
        "NORMAL": "The message has normal priority and no header field for it.",
        "LOW": "The message is not urgent (`X-Priority: 5`, `Importance: low`).",
    },
    "ProtocolScope": {
        "IMAP": "Reading mail with a mail program on an IMAP server beside Merganser.",
        "POP3": "Fetching mail with a mail program from a POP3 server beside Merganser.",
        "SMTP": "Sending mail with a mail program by SMTP submission.",
    },
    "QuotePosition": {
        "NONE": "The original message is not quoted.",
        "BELOW": "The original message is quoted below the new text.",
        "ABOVE": "The original message is quoted above the new text.",
    },
    "MessageRelationKind": {
        "REPLY": "The new message replies to the author of the original message.",
        "REPLY_ALL": "The new message replies to the author and all recipients of the original "
        "message.",
        "FORWARD": "The new message forwards the original message to new recipients.",
    },
    "ResyncReason": {
        "CURSOR_EXPIRED": (
            "The events after the cursor are no longer kept: by default, they are older than 30 "
            "days, or more than 100,000 events of the account or domain followed."
        ),
        "CURSOR_UNKNOWN": "The cursor is after the last event, since it is from another database.",
        "OVERFLOW": (
            "More events follow the cursor than the stream delivers (10,000 by default): the "
            "client read too slowly or was offline too long. The query `changes` can still have "
            "them."
        ),
        "STORE_RESTORED": "The database was restored from a backup after the cursor was issued.",
    },
    "ShareRight": {
        "LOOKUP": "Shows the mailbox in lists (`l`). Every other right includes it.",
        "READ": "Reads messages of the mailbox (`r`).",
        "SEEN": r"Changes the flag \Seen (`s`).",
        "WRITE": "Changes keywords, metadata and all flags but \\Seen and \\Deleted (`w`).",
        "INSERT": "Adds messages to the mailbox (`i`).",
        "DELETE": "Sets the flag \\Deleted, moves messages out of the mailbox, or deletes "
        "messages (`t`).",
        "EXPUNGE": "Deletes messages for good (`e`).",
        "CREATE": "Creates mailboxes below the mailbox (`k`).",
        "ADMIN": "Reads and changes the shares of the mailbox (`a`).",
        "POST": "Sends mail as the owner of the mailbox (`p`).",
    },
    "SpecialUse": {
        "INBOX": "Mailbox that new mail is delivered to.",
        "DRAFTS": "Mailbox for messages that are not sent yet.",
        "JUNK": "Mailbox that spam is delivered to.",
        "SENT": "Mailbox for copies of sent messages.",
        "TRASH": "Mailbox for messages that were moved to the trash.",
        "ARCHIVE": "Mailbox for messages that are archived.",
        "FLAGGED": "Mailbox for messages with the flag \\Flagged.",
        "ALL": "Mailbox with all messages of the user.",
        "SNOOZED": "Mailbox for snoozed messages. It is created when it is needed.",
        "SCHEDULED": "Mailbox for copies of messages that are held or scheduled. It is created "
        "when it is needed.",
    },
    "SubmissionState": {
        "SCHEDULED": "The submission waits for its send time.",
        "UNDOABLE": "The submission is held for its undo window and can be cancelled.",
        "QUEUED": "The submission waits for the first attempt.",
        "SENDING": "At least one attempt was made, and some deliveries are not finished.",
        "SENT": "All deliveries succeeded: each is DELIVERED or RELAYED.",
        "PARTIAL": "Some deliveries succeeded. The others failed, expired or were cancelled.",
        "FAILED": ("No delivery succeeded, and not all deliveries were cancelled."),
        "CANCELLED": "All deliveries of the submission were cancelled.",
    },
    "WebhookDeliveryState": {
        "PENDING": "The event is not delivered yet.",
        "DELIVERED": "The receiver replied with status 2xx.",
        "FAILED": "The receiver did not accept the event in 12 attempts or within a day, or a "
        "test event in one attempt. No attempt follows.",
    },
    **CONNECTOR_VALUE_DESCRIPTIONS,
    "TaskState": {
        "QUEUED": (
            "The task waits for a worker: for its first step, or after some steps for its next "
            "turn."
        ),
        "RUNNING": "A worker runs the task, or was interrupted and the task continues later.",
        "SUCCEEDED": "The task ended without an error.",
        "FAILED": "The task ended with an error.",
        "CANCELLED": "The task was cancelled. The work done before remains.",
    },
    "TwoFactorMethod": {
        "TOTP": "A time-based one-time password (RFC 6238).",
        "EXTERNAL": "A factor that the calling application checks.",
        "WEBAUTHN": "A security key or passkey (W3C Web Authentication).",
    },
    "UsageKind": {
        "RECIPIENTS": "Counter of recipients that the account wrote to in 24 hours.",
        "RECEIVED": "Counter of messages that the account received in one hour.",
        "AUTOREPLIES": "Counter of automatic replies that the account sent in 24 hours.",
        "FORWARDS": "Counter of messages that the account forwarded to targets in 24 hours.",
    },
    "UsageLevel": {
        "NORMAL": "Usage is below the thresholds, or unlimited.",
        "WARNING": "Usage has reached the setting `limits.warningPercent`, 80 percent by default.",
        "CRITICAL": "Usage has reached the setting `limits.criticalPercent`, 95 percent by "
        "default.",
        "FULL": "Usage has reached the limit.",
    },
    "WebauthnCeremony": {
        "REGISTRATION": "The challenge registers a new key.",
        "AUTHENTICATION": "The challenge verifies a registered key.",
    },
    **CERTIFICATE_VALUE_DESCRIPTIONS,
    **RIGHT_VALUE_DESCRIPTIONS,
    **LOG_VALUE_DESCRIPTIONS,
    **MESSAGE_ORDER_DESCRIPTIONS,
    **METRIC_VALUE_DESCRIPTIONS,
    **OPERATION_VALUE_DESCRIPTIONS,
    **ORDER_VALUE_DESCRIPTIONS,
    "ValidationConstraint": CONSTRAINT_DESCRIPTIONS,
}
