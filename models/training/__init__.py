"""How the weights in `models/` are trained: see README.md in this folder."""
