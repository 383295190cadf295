"""Backends run a network on a device. `selection.py` opens an engine; `base.py` defines the interfaces."""
