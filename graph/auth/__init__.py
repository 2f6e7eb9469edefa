"""Schema of sign-in, credentials and second factors."""
