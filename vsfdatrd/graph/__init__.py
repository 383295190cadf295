"""ONNX graphs of FDAT-RD and FDAT, written node by node from the weights. Needs no torch; takes about a second.

A graph computes the same function as `nn.fdat_rd.FdatRd`, or spandrel's FDAT, in a form suited to inference engines:
the batch size is one, and everything that depends on the weights alone is precomputed in float64.
"""

# Part of the cache key of engines: increment it with every change of the graphs.
GRAPH_VERSION = "8"
