"""Measurements of vsfdatrd, one file a question. Not part of the installed package."""
