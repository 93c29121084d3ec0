"""What the diffusion transformers have in common: shapes, sizes, detection."""
