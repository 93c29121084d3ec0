"""Data: sources of images, folders of latents, and the grain pipeline that makes batches of them.

Nothing in this package imports TensorFlow: tensorflow-datasets reads and writes ArrayRecord without
it as long as images travel as encoded bytes.
"""
