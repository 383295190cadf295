"""Files, programs and progress output."""
