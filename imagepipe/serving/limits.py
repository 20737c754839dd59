"""Limits on requests: of the server, which refuses what exceeds them, and of files of requests."""

from imagepipe.base.features import MAX_SIDE_FEATURES
from imagepipe.base.images import MAX_BYTES

MAX_BODY_BYTES = 64 * 2**20
"""Size of a request, unpacked: a large photo in base64, or a batch of common ones."""

SMALL_BODY_BYTES = 2**17
"""Size up to which a request over HTTP is parsed at once: handing it to another thread takes longer."""

LARGE_BODY_BYTES = 2**20
"""Size from which on a request waits for other large ones, and never a common one for it."""

MAX_BODIES_BYTES = 4 * MAX_BODY_BYTES
"""Size of all large requests that are being read or answered."""

MAX_COMMON_BODIES_BYTES = 64 * LARGE_BODY_BYTES
"""Size of all others."""

MAX_MESSAGE_BYTES = MAX_BODY_BYTES // 2
"""Size of a message by gRPC, which has images without base64."""

MAX_MESSAGES = 16
"""Messages by gRPC that arrive at once; further ones wait, or take the place of the slowest."""

MAX_PLAIN_BYTES = 2**16
"""Size of a message by gRPC that asks about the server: it is parsed in the thread that answers probes."""

MAX_BODY_SECONDS = 60
"""Time for a body to arrive: a caller who stops in the middle holds a part of MAX_BODIES_BYTES."""

MAX_HEAD_SECONDS = 20
"""Time for a request's first line and headers to arrive, from their first byte."""

MAX_IDLE_SECONDS = 65
"""Time for a client to send its next request, or to read an answer: more than the 60 s of common load balancers."""

MAX_HEAD_BYTES = 2**16
"""Size of a request's first line and headers."""

MAX_HEADERS = 100
"""Headers of a request, trailers included."""

MAX_PIPELINED = 16
"""Requests that a client may send before it has the answer to its first."""

GRACE_SECONDS = 15
"""Time to finish what was asked before SIGTERM, on all ports: with what capture may take then, less than the 30 s that
Kubernetes waits."""

ENDING_BODY_SECONDS = 2
"""Time for the rest of a request to arrive, after SIGTERM."""

MAX_CONNECTIONS = 4096
"""Connections at once; one more takes the place of the one that has been idle or slow for longest."""

MAX_HANDSHAKES = 256
"""Connections by TLS whose handshake isn't done; one more takes the place of the oldest. Each has MAX_HEAD_SECONDS."""

MAX_ANSWERS_BYTES = 4 * MAX_BODY_BYTES
"""Size of all answers that clients are slow to read."""

MAX_IMAGES_BYTES = MAX_BODY_BYTES // 2
"""Size of the images of a request before base64, which makes them a third longer."""

MAX_INSTANCES = 128
"""Images in a request."""

MAX_VALUES = 1024 * MAX_INSTANCES
"""Values in a request, in JSON or in binary tensors: bounds the time and the memory that parsing takes."""

MAX_FORM_PARTS = MAX_SIDE_FEATURES + 2
"""Fields of a form: the image, its id and all side features that a model can have."""

MAX_TEXT_CHARACTERS = 4096
"""Length of an image's id and of a side feature's text, which are quoted in answers: the longest path of Linux."""

MAX_ERROR_CHARACTERS = 1000
"""Length of the reason for a refusal: it may quote what was sent."""

MAX_ONLINE_PIXELS = 50_000_000
"""Largest width x height of an image online: what phones take. A decoder holds some 5 bytes per pixel."""

LARGE_PIXELS = MAX_ONLINE_PIXELS
"""Pixels of all images of a request from which on it waits for other large ones: decoding them takes a second."""

MAX_REQUEST_PIXELS = 8 * MAX_ONLINE_PIXELS
"""Pixels of all images of a request: few bytes can hold many, and a core that decodes them does nothing else."""

MAX_BATCH_PIXELS = 4_000_000
"""Pixels of a batch that several requests share: those of large photos would wait for each other's decoding."""

MAX_WAITING = 256
"""Images waiting for an answer: eight batches."""

NETWORK_BATCH_SIZE = 8
"""Images per call of a network by OpenVINO, and of a batch prediction: larger ones gain little, and take memory."""

MAX_LINE_BYTES = MAX_BYTES * 4 // 3 + 2**20
"""Length of a line in a file of JSON lines: base64 needs four characters for three bytes."""

MAX_ARRAYS_BYTES = 2**31
"""Size of the arrays in a ``.npz`` file, which are read at once."""
