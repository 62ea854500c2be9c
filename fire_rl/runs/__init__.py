"""The format of a run folder: who writes and who reads which file."""
