"""Limits on requests: of the server, which refuses what exceeds them, and of files of requests."""

from imagepipe.base.images import MAX_BYTES

MAX_BODY_BYTES = 64 * 2**20
"""Size of a request: a large photo in base64, or a batch of common ones."""

MAX_BODIES_BYTES = 4 * MAX_BODY_BYTES
"""Size of all requests that are being read or answered."""

MAX_BODY_SECONDS = 60
"""Time for a body to arrive: a caller who stops in the middle holds a part of MAX_BODIES_BYTES."""

MAX_IMAGES_BYTES = MAX_BODY_BYTES // 2
"""Size of the images of a request before base64, which makes them a third longer."""

MAX_INSTANCES = 128
"""Images in a request."""

MAX_ONLINE_PIXELS = 50_000_000
"""Largest width x height of an image online: what phones take. A decoder holds some 5 bytes per pixel."""

MAX_REQUEST_PIXELS = 8 * MAX_ONLINE_PIXELS
"""Pixels of all images of a request: few bytes can hold many, and a core that decodes them does nothing else."""

MAX_WAITING = 256
"""Images waiting for an answer: eight batches."""

BATCH_SIZE = 32
"""Images per call of the network, at most: the throughput of a CPU is flat from 8 on."""

MAX_LINE_BYTES = MAX_BYTES * 4 // 3 + 2**20
"""Length of a line in a file of JSON lines: base64 needs four characters for three bytes."""

MAX_ARRAYS_BYTES = 2**31
"""Size of the arrays in a ``.npz`` file, which are read at once."""
