"""Log entries about messages: their way, verdicts and refusals at limits."""
