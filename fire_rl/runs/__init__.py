"""The format of a run folder: what training writes into it, and how that is read back."""
