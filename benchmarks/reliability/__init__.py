"""What the toolkit survives: kills, damaged files, strangers' files, bad numbers, exceptions."""
