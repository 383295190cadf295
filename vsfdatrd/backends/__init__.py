"""Engines: what runs a network on a device. `choice.py` opens one; `base.py` says what one is."""
