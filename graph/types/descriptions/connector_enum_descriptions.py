"""Descriptions of enum values of connectors."""

from resolvers.connectors.options import OPTION_DESCRIPTIONS

CONNECTOR_VALUE_DESCRIPTIONS = {
    "AuthMechanism": {
        "PLAIN": "Username and password in one response (RFC 4616), or with the login command of "
        "the protocol if the server does not offer PLAIN.",
        "LOGIN": "The login command of the protocol, with username and password.",
        "CRAM_MD5": "Challenge and response, SASL name CRAM-MD5 (RFC 2195). IMAP only.",
        "XOAUTH2": "OAuth 2.0 access token in Google's format.",
        "OAUTHBEARER": "OAuth 2.0 access token (RFC 7628).",
    },
    "ConnectorOptionName": {
        str(name): description for name, description in OPTION_DESCRIPTIONS.items()
    },
    "ConnectorProtocol": {
        "IMAP": (
            "IMAP (RFC 3501): all mailboxes with their flags, except virtual ones with the "
            r"special use \All or \Flagged."
        ),
        "POP3": "POP3 (RFC 1939): one mailbox without flags.",
        "ARCHIVE": "An archive file. Used by `mailImport`.",
        "USER": "Another account of this platform. Used by `mailImport`.",
    },
    "ConnectorSecurity": {
        "NONE": "No encryption.",
        "STARTTLS": "TLS after the command STARTTLS. The connection fails without it.",
        "TLS": "TLS from the start of the connection.",
    },
    "ConnectorStage": {
        "RESOLVE": "The host name is resolved, and its address checked.",
        "CONNECT": "The TCP connection is opened.",
        "TLS": "TLS is negotiated, and the certificate verified.",
        "GREETING": "The greeting of the server is read.",
        "LOGIN": "The connector signs in.",
        "LIST": "The remote mailboxes are listed.",
        "FETCH": "Messages are fetched.",
        "STORE": "Fetched messages are stored in the account.",
        "DELETE": "Fetched messages are deleted on the remote server.",
        "IDLE": "The connector waits for new messages (RFC 2177).",
    },
}
