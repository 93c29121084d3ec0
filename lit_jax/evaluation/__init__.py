"""Measuring generated images: features, scores in float64, the digit judge, pictures, reports."""
