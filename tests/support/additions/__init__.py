"""Parts that a user might add: each is written as docs/architecture.md describes it."""
