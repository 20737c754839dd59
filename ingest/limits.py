"""What is taken from strangers' images and manifests, at most."""

MAX_PIXELS = 100_000_000
"""Default limit on an image's width x height: 300 MB as RGB. More than cameras give, less than a decompression bomb."""

MAX_BYTES = 256 * 2**20
"""Largest image file: keeps a record far below protobuf's limit of 2 GiB, and the memory of a worker bounded."""

MAX_LINE = 2**20
"""Longest line of a manifest, in characters: a longer one is no row but an accident, or an attack on the memory."""
