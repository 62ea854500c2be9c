"""Networks in files: read as data only, inspected, rebuilt, changed."""
