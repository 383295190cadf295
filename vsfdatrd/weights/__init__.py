"""Model names and weights files."""
