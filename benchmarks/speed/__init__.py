"""The speed of upscaling, ours beside others', measured in turns."""
