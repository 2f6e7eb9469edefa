"""Objects of other accounts, and the requests that try to reach them."""
