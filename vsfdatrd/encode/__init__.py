"""`vsfdatrd encode`: upscale and encode a film in chunks; an interrupted encode resumes. Start at `encode.py`."""
