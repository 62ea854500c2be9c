"""What files, kills and exceptions were tried, and what survived."""
