"""Sign-in of a domain's users at their OpenID Connect identity provider."""
