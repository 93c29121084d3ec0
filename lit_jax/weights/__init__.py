"""Weights on disk: key tables between torch layouts and this package, and model folders."""
