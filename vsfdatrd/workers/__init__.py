"""Worker processes: starting them, sending them requests, and the server loop that runs inside them."""
