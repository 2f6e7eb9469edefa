"""OpenID providers on loopback that tests sign in at."""
