"""Where plasticity is lost and what restores it: runs, tables, pictures."""
