"""Sign-in, credentials and second factors."""
