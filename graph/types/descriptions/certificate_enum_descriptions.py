"""Descriptions of enum values of certificates and ACME."""

CERTIFICATE_VALUE_DESCRIPTIONS = {
    "AcmeState": {
        "TERMS_NOT_AGREED": "The certificate is due, but nothing is ordered until the terms of "
        "the authority are agreed to (setting `acme.termsAgreed`).",
        "WAITING": "The certificate is ordered as soon as a worker is free.",
        "ORDERING": "The server checks DNS and creates the order at the authority.",
        "VALIDATING": "The authority checks the HTTP challenges of the names.",
        "ISSUING": "All names are proved, and the authority issues the certificate.",
        "VALID": "The certificate is valid until it is renewed at `acmeNextOrderAt`.",
        "FAILED": "The last order failed with `acmeError`. It is repeated at `acmeNextOrderAt`.",
        "REVOKED": "The authority revoked the certificate, but `certificateDelete` failed for "
        "another one and deleted none. The certificate is served until it is deleted or renewed.",
    },
    "RevocationReason": {
        "UNSPECIFIED": "No reason is given.",
        "KEY_COMPROMISE": "The private key is, or may be, known to others.",
        "AFFILIATION_CHANGED": "The names of the certificate belong to another organization.",
        "SUPERSEDED": "Another certificate replaces this one.",
        "CESSATION_OF_OPERATION": "The names of the certificate are no longer served.",
    },
}
