"""SASL responses for sign-in on a remote server (RFC 4616, 2195, 7628; Google's XOAUTH2)."""

import hmac
from collections.abc import Callable

from mail.connectors.remote_server import RemoteServer
from models.connectors import AuthMechanism

MAX_CHALLENGES = 5  # of one sign-in


def response_function(server: RemoteServer, mechanism: AuthMechanism) -> Callable[[bytes], bytes]:
    """The function that returns the response to the first challenge of a mechanism.

    Later challenges get an empty response.
    """
    name, secret = server.username, server.secret
    if mechanism is AuthMechanism.CRAM_MD5:
        return lambda challenge: (
            f"{name} {hmac.digest(secret.encode(), challenge, 'md5').hex()}".encode()
        )
    if mechanism is AuthMechanism.PLAIN:
        return lambda _: f"\0{name}\0{secret}".encode()
    user_field = f"user={name}"
    if mechanism is AuthMechanism.OAUTHBEARER:
        user_field = f"n,a={name.replace('=', '=3D').replace(',', '=2C')},"
    return lambda _: f"{user_field}\x01auth=Bearer {secret}\x01\x01".encode()
