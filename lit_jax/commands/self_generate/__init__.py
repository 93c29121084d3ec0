"""self_generate."""
