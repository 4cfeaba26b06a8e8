"""One recorded pass through a network: step through it, explain its numbers, write it down as a page."""
