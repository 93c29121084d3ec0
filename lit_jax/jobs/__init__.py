"""The jobs behind `python -m lit_jax`: each is one readable file."""
