"""Password hashes of other mail servers, with their passwords."""

PBKDF2_SHA1 = "$pbkdf2-sha1$i=2$c2FsdA$6mwBTcctb4zNHtkqzh1B8NjeiVc"  # RFC 6070
PBKDF2_SHA512 = (
    "$pbkdf2-sha512$i=1$c2FsdA$hn9wzxreAs/zdSWZo6U9xK80x6ZpgVrl1RNVThyM8lLALUcKKFoFAbrZmb/pQ8CPBQI1"
    "19aLHaVeY/c7YKV/zg"
)
PBKDF2_SHA256 = "$pbkdf2-sha256$i=1$c2FsdA$VawEblbjCJ/sFpHCJUS2BflBhSFt3gRl5oudV8INrLw"  # RFC 7914
SHA512_CRYPT = (
    "$6$abcdefgh$ltjgWl6579NluT/Vi1nwEvcil.G5Nbc4NiXZaNGStk8PSwGfQv72N2CKPPrVACtLtip/cZ/1GM/O6IND4"
    "WQhG."
)
LEGACY_HASHES = [  # from RFCs, OpenSSL, libxcrypt, Openwall and the reference of Argon2
    ("password", PBKDF2_SHA1),
    ("password", PBKDF2_SHA1.replace("i=2", "2")),
    ("passwd", PBKDF2_SHA256),
    ("password", PBKDF2_SHA512),
    ("password", PBKDF2_SHA512.replace("+", ".")),
    ("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    ("U*U", "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    ("secret", "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"),
    ("secret", "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"),
    ("secret", "$5$abcdefgh$gruCpC7VkOTspMQTTSAR8mtlO9Upms.fwqE5y16JVM."),
    ("secret", SHA512_CRYPT),
    ("secret", "abNANd1rDfiNc"),
    ("password", "$argon2i$m=256,t=2,p=1$c29tZXNhbHQ$/U3YPXYsSb3q9XxHvc0MLxur+GP960kN9j7emXX8zwY"),
    (
        "password",
        "$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$iekCn0Y3spW+sCcFanM2xBT63UP2sghkUoHLIUpWRS8",
    ),
    (
        "password",
        "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
    ),
    ("pässword", "$argon2d$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg"),
]
