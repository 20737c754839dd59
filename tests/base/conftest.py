from tests.ingest.conftest import lines, put, records, tree  # noqa: F401 (fixtures)
from tests.photos import crops, encode, photos  # noqa: F401 (fixtures)
from tests.stores import memory, s3, s3_server, store  # noqa: F401 (fixtures)
