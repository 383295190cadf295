"""Clips: color, frame properties, padding and tiles."""
