"""Encode chunks on the machines of a Ray cluster."""
