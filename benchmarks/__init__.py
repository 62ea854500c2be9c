"""Speed, memory and learning experiments, each runnable by one command."""
