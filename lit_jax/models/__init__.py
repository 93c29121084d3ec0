"""Networks as Flax NNX modules: layers, mixers, DiT and the table of named sizes."""
