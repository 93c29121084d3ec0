"""Parts that all diffusion transformers share: shapes, sizes, detection."""
