"""Descriptions of the enum values of OAuth."""

from collections.abc import Mapping

OAUTH_ENUM_DESCRIPTIONS: Mapping[str, Mapping[str, str]] = {
    "OauthGrantType": {
        "AUTHORIZATION_CODE": "The user signs in and allows access (RFC 6749, section 4.1). PKCE "
        "with S256 is required.",
        "REFRESH_TOKEN": "A refresh token replaces an expired access token. It can be used once.",
    },
    "OauthScope": {
        "OPENID": "Signing in with OpenID Connect. The client gets an ID token.",
        "PROFILE": "The name and the username, as claims of OpenID Connect.",
        "EMAIL": "The main address, as a claim of OpenID Connect.",
        "READ": "Reading the account and its mail by this API, as the scope READ.",
        "MAIL_READ": "Reading the mail of the user by this API.",
        "MAIL": "Reading and changing the mail of the user by this API.",
        "SUBMIT": "Sending messages by this API.",
        "SETTINGS": "Changing the settings of the user by this API, as the scope SETTINGS.",
        "IMAP": "Sign-in to an IMAP server beside Merganser, which checks the token by "
        "introspection.",
        "POP3": "Sign-in to a POP3 server beside Merganser, which checks the token by "
        "introspection.",
        "SMTP": "Sign-in to message submission (RFC 6409) by XOAUTH2 or OAUTHBEARER.",
        "SIEVE": "Reading and changing Sieve scripts by this API.",
        "DOMAIN_ADMIN": "All rights of a user with the role DOMAIN_ADMIN by this API, also to "
        "change credentials. Other users can't give it, and clients can't register themselves "
        "with it. Credentials that the client creates remain when its access ends.",
    },
    "IdentityProviderTestStepKind": {
        "CLIENT": "The token endpoint accepts the client ID and the secret.",
        "DISCOVERY": "The discovery document and the keys can be read and are valid.",
        "LOGOUT": "The provider supports back-channel logout, without which sessions are not ended "
        "by it.",
        "PKCE": "The provider supports PKCE with S256 (RFC 7636), or does not say what it "
        "supports.",
    },
}
