"""Mail fetched from accounts elsewhere: what is said to their servers, and what comes of it."""
