"""How networks are evaluated: in chunks, by recorded CUDA graphs, with exact convolutions."""
