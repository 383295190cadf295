"""`vsfdatrd encode`: a film from file to file, in parts, so that nothing is lost. `command.py` tells the story."""
