"""The format of a run folder: what training writes, how it is read, what its episodes say."""
