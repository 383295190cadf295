"""Compare the speed of upscaling with other software, measured in turns."""
