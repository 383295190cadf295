"""Subcommands of ``vsfdatrd`` other than encode, compare and preview."""
