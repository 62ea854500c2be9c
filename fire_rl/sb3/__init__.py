"""All that knows Stable-Baselines3: where its networks are, what they see, how they change."""
