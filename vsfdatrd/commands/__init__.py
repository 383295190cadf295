"""Subcommands of ``vsfdatrd`` other than encode and compare."""
