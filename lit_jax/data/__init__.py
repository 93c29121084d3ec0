"""Data sets: TFDS builders that write ArrayRecord, and the grain pipeline that reads it.

Nothing in this room imports TensorFlow: tensorflow-datasets writes and reads ArrayRecord without
it as long as images travel as encoded bytes (see `digits` and `transforms.decode_image`).
"""
