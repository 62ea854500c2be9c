"""What agents learn, and that nothing is lost on the way."""
