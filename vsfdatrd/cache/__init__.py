"""The cache of built engines and of metadata about files."""
