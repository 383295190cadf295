"""What a weights file holds: architecture, configuration, sizes; no torch, no VapourSynth."""
