"""The studio: a page in the browser for people who never saw a command line."""
