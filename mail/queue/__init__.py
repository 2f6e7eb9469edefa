"""The outbound queue: claim what is due, hand it over, write down what came of it."""
