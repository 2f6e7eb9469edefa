"""The replies of the SMTP, submission and LMTP listeners (RFC 5321, RFC 2033).

The texts are those of Postfix, Exim, Dovecot and the RFCs, so that log searches find them. Each
reply except the greeting, 334 and 354 has an enhanced status code (RFC 3463, RFC 5248). Replies
with `{hostname}` end the session; format them with the name of this server.
"""

import re

MAX_SCRIPT_TEXT = 400  # characters; a reply line has 512 bytes (RFC 5321, section 4.5.3.1.5)

_NOT_IN_DOMAIN = re.compile(r"[^A-Za-z0-9_.-]")

NOOP_REPLY = "250 2.0.0 OK"
RESET_REPLY = "250 2.0.0 Reset"
SENDER_OK_REPLY = "250 2.1.0 Sender OK"
RECIPIENT_OK_REPLY = "250 2.1.5 Recipient OK"
START_DATA_REPLY = "354 End data with <CR><LF>.<CR><LF>"
START_TLS_REPLY = "220 2.0.0 Ready to start TLS"
AUTHENTICATED_REPLY = "235 2.7.0 Authentication successful"
CANNOT_VRFY_REPLY = "252 2.0.0 Cannot VRFY user"
BYE_REPLY = "221 2.0.0 Bye"

MALFORMED_REPLY = "500 5.5.2 Bad command syntax"
LINE_TOO_LONG_REPLY = "500 5.5.2 Line too long"
BARE_LF_REPLY = "521 5.5.2 Error: bare <LF> received"
UNKNOWN_COMMAND_REPLY = "500 5.5.1 Unknown command"
LHLO_REQUIRED_REPLY = "500 5.5.1 This is LMTP, use LHLO"
MAIL_SYNTAX_REPLY = "501 5.5.4 Syntax: MAIL FROM:<address>"
RCPT_SYNTAX_REPLY = "501 5.5.4 Syntax: RCPT TO:<address>"
BAD_SENDER_REPLY = "553 5.1.7 Bad sender address syntax"
BAD_RECIPIENT_REPLY = "553 5.1.3 Bad recipient address syntax"
BAD_PARAMETER_REPLY = "501 5.5.4 Bad parameter syntax"
BAD_SIZE_REPLY = "501 5.5.4 Bad message size syntax"
BAD_BODY_REPLY = "501 5.5.4 Bad BODY parameter syntax: must be 7BIT or 8BITMIME"
BAD_SMTPUTF8_REPLY = "501 5.5.4 Bad SMTPUTF8 parameter syntax: takes no value"
SMTPUTF8_REQUIRED_REPLY = "553 5.6.7 Must declare SMTPUTF8 to send a non-ASCII address"

NESTED_MAIL_REPLY = "503 5.5.1 Nested MAIL command"
MAIL_REQUIRED_REPLY = "503 5.5.1 Need MAIL command"
RCPT_REQUIRED_REPLY = "503 5.5.1 Need RCPT command"
TLS_NOT_AVAILABLE_REPLY = "502 5.5.1 Command not implemented: TLS not available"
TLS_ACTIVE_REPLY = "503 5.5.1 TLS already active"

STARTTLS_REQUIRED_REPLY = "530 5.7.0 Must issue a STARTTLS command first"
AUTHENTICATION_REQUIRED_REPLY = "530 5.7.0 Authentication required"
ENCRYPTION_REQUIRED_REPLY = "538 5.7.11 Encryption required for requested authentication mechanism"
UNKNOWN_MECHANISM_REPLY = "504 5.5.4 Unrecognized authentication type, use PLAIN or LOGIN"
UNDECODABLE_RESPONSE_REPLY = "501 5.5.2 Cannot Base64-decode client response"
BAD_PLAIN_RESPONSE_REPLY = "501 5.5.2 Bad response syntax for AUTH PLAIN"
AUTHENTICATION_ABORTED_REPLY = "501 5.7.0 Authentication aborted"
ALREADY_AUTHENTICATED_REPLY = "503 5.5.1 Already authenticated"
AUTH_IN_TRANSACTION_REPLY = "503 5.5.1 MAIL transaction in progress"
CREDENTIALS_INVALID_REPLY = "535 5.7.8 Authentication credentials invalid"
AUTHENTICATION_THROTTLED_REPLY = (
    "454 4.7.0 Temporary authentication failure: too many failures, please try again later"
)
CREDENTIALS_EXPIRED_REPLY = "421 4.7.0 {hostname} Authentication credentials no longer valid"

USER_UNKNOWN_REPLY = "550 5.1.1 Recipient address rejected: User unknown"
MAILBOX_FULL_REPLY = "452 4.2.2 Mailbox full"
RECIPIENT_RATE_REPLY = "450 4.2.1 Recipient receives mail too quickly, please try again later"
TOO_MANY_RECIPIENTS_REPLY = "452 4.5.3 Too many recipients"
RECIPIENT_REQUIRES_TLS_REPLY = f"{STARTTLS_REQUIRED_REPLY}: recipient requires TLS"
NETWORK_LIMIT_REPLY = "450 4.7.1 Too much mail from your network, please try again later"
MAILBOX_LIMIT_REPLY = (
    "450 4.2.1 Too much mail from your network for this recipient, please try again later"
)
TOO_LARGE_REPLY = "552 5.3.4 Message size exceeds fixed maximum message size"
MAIL_LOOP_REPLY = "554 5.4.6 Too many hops, this message is looping"
SPAM_REPLY = "550 5.7.1 Spam message rejected"
SPAM_FORWARD_REPLY = "554 5.7.1 Spam message rejected: spam is not forwarded"
VIRUS_REPLY = "550 5.7.1 Message rejected: virus found"
POLICY_REPLY = "550 5.7.1 Rejected for policy reasons"

TRY_LATER_REPLY = "451 4.3.0 Temporary local problem, please try again later"
NO_SPACE_REPLY = "452 4.3.1 Insufficient system storage"

NOT_ACCEPTED_NOW_REPLY = (
    "454 4.7.0 Temporary authentication failure: no sessions of this user are accepted now"
)
SHUTDOWN_REPLY = "421 4.3.2 {hostname} Service shutting down, closing transmission channel"
TOO_MANY_CONNECTIONS_REPLY = (
    "421 4.3.2 {hostname} Too many concurrent connections, please try again later"
)
TOO_MANY_CONNECTIONS_FROM_IP_REPLY = (
    "421 4.7.0 {hostname} Too many connections from your IP address"
)
NETWORK_BANNED_REPLY = "554 5.7.1 {hostname} Your network is banned"
NETWORK_BANNED_IN_SESSION_REPLY = "421 4.7.0 {hostname} Your network is banned"
TIMEOUT_REPLY = "421 4.4.2 {hostname} Error: timeout exceeded"
TOO_MANY_ERRORS_REPLY = "421 4.7.0 {hostname} Error: too many errors"
TOO_MANY_UNKNOWN_RECIPIENTS_REPLY = "421 4.7.0 {hostname} Error: too many unknown recipients"
TOO_MANY_COMMANDS_REPLY = "421 4.7.0 {hostname} Error: too many commands"
TOO_MANY_AUTHENTICATION_FAILURES_REPLY = (
    "421 4.7.0 {hostname} Error: too many authentication failures"
)
FAR_TOO_LARGE_REPLY = (
    "421 4.3.0 {hostname} Message size exceeds fixed maximum message size, closing connection"
)
SERVER_ERROR_REPLY = "421 4.3.0 {hostname} Temporary local problem, closing connection"


def session_terminated_reply(hostname: str, reason: str | None) -> str:
    """Return the reply to the client of a session that an administrator ends."""
    text = (reason or "Session closed by the administrator").encode("ascii", "replace").decode()
    return f"421 4.3.2 {hostname} {text}"


def syntax_reply(usage: str) -> str:
    """Return the reply to a command with wrong arguments. `usage` is the correct command line."""
    return f"501 5.5.4 Syntax: {usage}"


def greeting_required_reply(greeting_commands: str) -> str:
    """Return the reply to a command before the greeting command, such as "HELO/EHLO"."""
    return f"503 5.5.1 Send {greeting_commands} first"


def unsupported_option_reply(parameter_name: str) -> str:
    """Return the reply to an unknown parameter of MAIL or RCPT."""
    return f"555 5.5.4 Unsupported option: {parameter_name[:100]}"


def bad_parameter_reply(problem: str) -> str:
    """Return the reply to an invalid value of a parameter of MAIL or RCPT."""
    return f"501 5.5.4 {_without_period(problem)}"


def duplicate_parameter_reply(parameter_name: str) -> str:
    """Return the reply to a repeated parameter of MAIL or RCPT."""
    return f"501 5.5.4 Duplicate parameter: {parameter_name[:100]}"


def help_reply(commands: str) -> str:
    """Return the reply to HELP."""
    return f"214 2.0.0 Commands supported: {commands}"


def queued_reply(queue_id: str) -> str:
    """Return the reply to an accepted message. Then the message is durable."""
    return f"250 2.0.0 OK: queued as {queue_id}"


def greylisted_reply(wait: int) -> str:
    """Return the reply to a greylisted message. `wait` is the time to the next try in seconds."""
    return f"451 4.7.1 Greylisted, please try again in {wait} seconds"


def script_reply(text: str) -> str:
    """Return the reply to a message that a Sieve script rejects: one line, in ASCII."""
    line = " ".join(text.split()).encode("ascii", "replace").decode()
    printable = "".join(character for character in line if character.isprintable())
    reason = printable[:MAX_SCRIPT_TEXT].strip() or "Message rejected by recipient"
    return f"550 5.7.1 {reason}"


def dmarc_reply(from_domain: str) -> str:
    """Return the reply to a message that the DMARC policy refuses (RFC 7489, section 10.3)."""
    domain = _NOT_IN_DOMAIN.sub("?", from_domain)[:253]
    return f"550 5.7.1 Email rejected per DMARC policy for {domain}"


def sending_limit_reply(problem: str) -> str:
    """Return the reply to a user who has reached a sending limit."""
    return f"450 4.7.1 Sending limit exceeded: {_without_period(problem)}"


def sender_not_allowed_reply(problem: str) -> str:
    """Return the reply to MAIL if the user may not send as the address."""
    return f"553 5.7.1 Sender address rejected: {_without_period(problem)}"


def invalid_sender_reply(problem: str) -> str:
    """Return the reply to MAIL if the address of the sender is invalid."""
    return f"{BAD_SENDER_REPLY}: {_without_period(problem)}"


def message_not_allowed_reply(problem: str) -> str:
    """Return the reply to a submitted message that the user may not send."""
    return f"550 5.7.1 Message rejected: {_without_period(problem)}"


def invalid_message_reply(problem: str) -> str:
    """Return the reply to a submitted message that is not valid."""
    return f"554 5.6.0 Message rejected: {_without_period(problem)}"


def _without_period(problem: str) -> str:
    """Return an error message without its final period, since replies have none."""
    return problem.removesuffix(".")
