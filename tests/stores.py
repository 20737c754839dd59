"""Fixtures of object stores: fsspec's in memory, and S3 on loopback behind its real client."""

import uuid

import fsspec
import pytest


class Store:
    """A bucket: its URI, and what lies in it, past the code under test.

    Attributes:
        uri: ``memory://NAME`` or ``s3://NAME``.
    """

    def __init__(self, uri):
        self.uri = uri
        self._system = fsspec.filesystem(uri.partition("://")[0], use_listings_cache=False, skip_instance_cache=True)

    def put(self, name, data):
        self._system.pipe_file(f"{self.uri}/{name}", data)
        return f"{self.uri}/{name}"

    def names(self, folder=""):
        """Names of all objects below a folder of the bucket."""
        root = self._system._strip_protocol(f"{self.uri}/{folder}")
        return [name[len(root) + 1 :] for name in self._system.find(root)]

    def content(self, folder=""):
        """Name to bytes of every object below a folder of the bucket."""
        path = f"{self.uri}/{folder}".rstrip("/")
        return {name: self._system.cat_file(f"{path}/{name}") for name in self.names(folder)}


@pytest.fixture(scope="session")
def s3_server():
    """The address of a server that answers as S3 does."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """An empty bucket in S3; the client gets address and credentials from the environment."""
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret-but-looks-like-one")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    yield Store(f"s3://{name}")
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def memory():
    """An empty bucket in this process's memory."""
    name = f"bucket-{uuid.uuid4().hex}"
    yield Store(f"memory://{name}")
    system = fsspec.filesystem("memory")
    for path in system.find(f"/{name}"):
        system.rm_file(path)


@pytest.fixture(params=["memory", "s3"])
def store(request):
    """An empty bucket, of one kind after the other."""
    return request.getfixturevalue(request.param)
