"""Worker processes: starting them, talking to them, serving in them."""
