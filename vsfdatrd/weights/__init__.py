"""Model names and readers for weights files."""
