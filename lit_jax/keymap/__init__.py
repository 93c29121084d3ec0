"""keymap."""
