"""Small helpers that any other room may use."""
