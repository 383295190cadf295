"""The networks: what FDAT-RD computes, free of VapourSynth and of any engine."""
