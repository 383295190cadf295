"""Chunks encoded by the machines of a Ray cluster."""
