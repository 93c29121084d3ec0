"""Training: state, optimiser, the jitted step, checkpoints and metrics."""
