"""Callers that a server answers: token, host, origin, TLS. The guard stands before a small real application."""

import base64
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

import imagepipe
from imagepipe.base.errors import ConfigError, ModelError
from imagepipe.serving.access import EVERYBODY, Access, Guard, list_risks, read_access

WORD = "1f3a-of-a-long-token_=+/"
ANYWHERE = "192.0.2.1"  # an address that is reached from elsewhere
HEALTH = "/v2/health/ready"


async def answer(request: Request) -> Response:
    if "x-proxy" in request.headers:
        return PlainTextResponse("no upstream", 502)
    model = {"model_spec": {"version": "1"}, "labels": ["a", "b"]}
    answers = {"/v1/models": {"models": ["m"]}, "/v1/models/m/metadata": model}
    prediction = {"predictions": [{"classes": [0.25, 0.75], "label": "b", "score": 0.75, "metadata": "x"}]}
    return JSONResponse(answers.get(request.url.path, prediction))


def guard(access: Access = EVERYBODY, host: str = "127.0.0.1", **options) -> Guard:
    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    return Guard(app, access, host, [HEALTH], **options)


def client(access: Access = EVERYBODY, host: str = "127.0.0.1", **options) -> TestClient:
    return TestClient(guard(access, host, **options), base_url="http://127.0.0.1:8080")


def write(folder: Path, content: bytes | str) -> Path:
    file = folder / "token"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    file.chmod(0o600)
    return file


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("login", ["Bearer", "Basic"])
def test_without_the_token_nothing_but_health_is_answered(login):
    asked = client(Access(WORD), login=login)
    refused = asked.get("/v1/models")
    assert (refused.status_code, refused.headers["WWW-Authenticate"].split()[0]) == (401, login)
    assert "a token is needed" in refused.json()["error"]
    for wrong in (bearer(""), bearer(WORD[:-1]), bearer(WORD + "x"), bearer("é"), {"Authorization": WORD}):
        headers = {name: value.encode() for name, value in wrong.items()}
        assert asked.post("/v1/models/m:predict", headers=headers).status_code == 401, wrong
    for path in (f"{HEALTH}/", f"/{HEALTH}", f"{HEALTH}/../models", "/metrics", "/openapi.json", "/"):
        assert asked.get(path).status_code == 401, path
    assert asked.get(HEALTH).status_code == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):  # AIP_PREDICT_ROUTE may be an open path
        assert asked.request(method, HEALTH).status_code == 401, method
    assert asked.get("/v1/models", headers=bearer(WORD)).status_code == 200
    assert asked.get("/v1/models", headers={"Authorization": f"bearer  {WORD} "}).status_code == 200


def test_a_browser_logs_in_with_the_token_as_password_where_that_is_wanted():
    for login, status in (("Basic", 200), ("Bearer", 401)):
        asked = client(Access(WORD), login=login)
        assert asked.get("/", auth=("anybody", WORD)).status_code == status
        assert asked.get("/", auth=("anybody", "wrong")).status_code == 401
        assert asked.get("/", auth=(WORD, "")).status_code == 401
        broken = {"Authorization": f"Basic {base64.b64encode(WORD.encode()).decode()}"}
        assert asked.get("/", headers=broken).status_code == 401
        assert asked.get("/", headers={"Authorization": "Basic é".encode()}).status_code == 401


def test_the_token_is_compared_in_constant_time_and_shown_by_no_repr(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda *pair: compared.append(pair) or False)
    assert client(Access(WORD)).get("/", headers=bearer(WORD)).status_code == 401
    assert compared == [(WORD.encode(), WORD.encode())]
    assert WORD not in repr(Access(WORD))


@pytest.mark.parametrize(
    ("listens", "hosts", "asked", "status"),
    [
        ("127.0.0.1", [], "127.0.0.1:8080", 200),
        ("127.0.0.1", [], "localhost:8080", 200),
        ("127.0.0.1", [], "[::1]:8080", 200),
        ("127.0.0.1", [], "rebound.example:8080", 400),
        ("127.0.0.1", [], "127.0.0.1.rebound.example", 400),
        ("127.0.0.1", [], "", 400),
        ("127.0.0.2", [], "127.0.0.2", 200),
        ("127.1", [], "127.1:8080", 200),
        ("127.1", [], "127.0.0.1:8080", 200),
        ("127.2", [], "127.0.0.2:8080", 200),  # as a name of this machine, which is often 127.0.1.1
        ("127.2", [], "127.0.0.3:8080", 400),
        ("127.0.0.1", ["models.example"], "models.example", 200),
        ("127.0.0.1", ["models.example"], "localhost", 200),
        (ANYWHERE, [], "flowers.team.svc.cluster.local", 200),
        (ANYWHERE, ["models.example", "*.team.svc"], "Models.Example:443", 200),
        (ANYWHERE, ["models.example", "*.team.svc"], "flowers.team.svc", 200),
        (ANYWHERE, ["models.example", "*.team.svc"], "team.svc", 400),
        (ANYWHERE, ["models.example"], "10.1.2.3:8080", 400),
    ],
)
def test_a_server_answers_to_its_names_only_and_to_probes_by_any(listens, hosts, asked, status):
    server = client(Access(hosts=hosts), listens)
    assert server.get("/v1/models", headers={"Host": asked}).status_code == status
    assert server.get(HEALTH, headers={"Host": "10.1.2.3:8080"}).status_code == 200  # Kubernetes knows the address only


def test_pages_of_other_origins_may_ask_only_if_they_are_listed():
    server = client(Access(WORD, origins=["https://app.example"]))
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-encoding,content-type,inference-header-content-length,"
        "x-request-id",
    }
    for origin, status in (("https://app.example", 200), ("https://evil.example", 400)):
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        allowed = origin if status == 200 else None
        answered = server.options("/v1/models/m:predict", headers=headers | preflight)  # browsers send it without token
        assert (answered.status_code, answered.headers.get("Access-Control-Allow-Origin")) == (status, allowed)
        posted = server.post("/v1/models/m:predict", headers=headers | bearer(WORD))
        assert posted.status_code == (200 if allowed else 403)
        assert posted.headers.get("Access-Control-Allow-Origin") == allowed
        readable = posted.headers["Access-Control-Expose-Headers"].lower().split(", ")
        assert {"inference-header-content-length", "x-request-id", "retry-after", "www-authenticate"} <= {*readable}
        refused = server.get("/v1/models", headers=headers)
        assert (refused.status_code, refused.headers.get("Access-Control-Allow-Origin")) == (401, allowed)


def test_a_foreign_page_cannot_make_its_readers_browser_ask_blindly():
    server = client()
    foreign = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert server.post("/v1/models/m:predict", headers=foreign | {"Sec-Fetch-Site": site}).status_code == status
    assert server.post("/v1/models/m:predict").status_code == 200  # no browser
    assert client(Access(origins=["*"])).post("/", headers=foreign | {"Sec-Fetch-Site": "cross-site"}).is_success


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://models.example:8080", "models.example:8080", 200),
        ("http://Models.example", "models.Example", 200),
        ("https://models.example", "models.example", 200),  # of a proxy that ends TLS
        ("http://models.example", "models.example:8080", 403),
        ("http://models.example:8081", "models.example:8080", 403),
        ("http://evil.example", "models.example:8080", 403),
        ("null", "models.example:8080", 403),
        ("http://app.example", "models.example:8080", 200),
    ],
)
def test_the_origin_tells_a_foreign_page_where_browsers_tell_nothing_else(origin, host, status):
    server = client(Access(origins=["http://app.example"]), ANYWHERE)
    headers = {"Origin": origin, "Host": host}  # as browsers send it by HTTP to another machine
    assert server.post("/v1/models/m:predict", headers=headers).status_code == status
    assert server.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"one\ntwo\n", "one word of printable ASCII"),
        (b"two words", "one word of printable ASCII"),
        ("schlüssel".encode(), "one word of printable ASCII"),
        (b"a\0b", "one word of printable ASCII"),
        (b"x" * 5000, "more than 4096 bytes"),
    ],
)
def test_a_file_that_holds_no_token_is_refused_without_quoting_it(tmp_path, content, words):
    with pytest.raises(ConfigError, match=words) as refused:
        read_access(write(tmp_path, content), None, None, (), ())
    assert str(tmp_path / "token") in str(refused.value)
    for part in content.decode().split():
        assert part not in str(refused.value).replace("one word", "")


def test_a_token_file_that_cannot_be_read_is_refused(tmp_path):
    for file in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="can't be read"):
            read_access(file, None, None, (), ())
    assert read_access(write(tmp_path, f"\n  {WORD}\r\n"), None, None, (), ()).token == WORD


@pytest.mark.parametrize("host", ["https://models.example", "models.example:8080", "a b", "", "a*", "*.*", "a/b"])
def test_a_host_that_is_no_name_is_refused(host):
    with pytest.raises(ConfigError, match="--allow-host"):
        read_access(None, None, None, [host], ())


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/", "https://a.example/path", "null", "", "https://*.a"]
)
def test_an_origin_that_is_none_is_refused(origin):
    with pytest.raises(ConfigError, match="--allow-origin"):
        read_access(None, None, None, (), [origin])


def test_risks_are_told_in_a_line_each(tmp_path):
    file = write(tmp_path, WORD)
    access = read_access(file, None, None, (), ())
    assert list_risks(access, ANYWHERE, file) == []
    assert list_risks(EVERYBODY, "127.0.0.1", None) == list_risks(EVERYBODY, "localhost", None) == []
    (risk,) = list_risks(EVERYBODY, ANYWHERE, None)
    assert "there is no --token-file" in risk
    file.chmod(0o644)
    (risk,) = list_risks(access, ANYWHERE, file)
    assert f"{file} can be read by every user" in risk


def test_what_holds_for_addresses_of_ipv4_holds_for_those_of_ipv6():
    assert list_risks(EVERYBODY, "::1", None) == []
    for host in ("::", "2001:db8::1"):
        (risk,) = list_risks(EVERYBODY, host, None)
        assert risk == f"everybody who reaches {host} is answered: there is no --token-file"
    names = ("[::1]:8080", "[2001:db8::1]:8080", "[2001:db8::1]", "[2001:db8::2]:8080", "models.example", "x.example")
    for host, access, answered in (
        ("::1", EVERYBODY, [True, False, False, False, False, False]),
        ("2001:db8::1", Access(hosts=["models.example"]), [True, True, True, False, True, False]),
        ("::", EVERYBODY, [True] * 6),
    ):
        asked = client(access, host)
        assert [asked.get("/v1/models", headers={"Host": name}).status_code == 200 for name in names] == answered


def test_a_certificate_that_does_not_fit_its_key_is_refused(certificates, tmp_path):
    own, key = certificates / "own.pem", certificates / "own.key"
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(encrypt(key.read_bytes()))
    (tmp_path / "text").write_text("text")
    for certificate, other in (
        (own, certificates / "other.key"),
        (own, tmp_path / "text"),
        (tmp_path / "text", key),
        (own, encrypted),
        (own, None),
        (key, own),
    ):
        with pytest.raises(ConfigError, match="don't fit together") as refused:
            read_access(None, certificate, other, (), ())
        assert "BEGIN" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"none can't be read"):
        read_access(None, own, tmp_path / "none", (), ())
    with pytest.raises(ConfigError, match="--certificate FILE"):
        read_access(None, None, key, (), ())


def encrypt(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )


@contextlib.contextmanager
def serve(access: Access) -> Iterator[str]:
    """Runs the application in uvicorn; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tls = {"ssl_certfile": access.certificate, "ssl_keyfile": access.key}
        config = uvicorn.Config(guard(access), log_config=None, log_level="trace", lifespan="off", **tls)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"{access.scheme}://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize("names", [("own.pem", "own.key"), ("both.pem", None)])
def test_the_client_shows_the_token_to_a_server_that_it_trusts(certificates, tmp_path, names, caplog, monkeypatch):
    certificate, key = (name and certificates / name for name in names)
    access = read_access(write(tmp_path, WORD), certificate, key, (), ())
    for name in ("uvicorn", "uvicorn.access"):  # which pass nothing on
        monkeypatch.setattr(logging.getLogger(name), "handlers", [caplog.handler])
    with serve(access) as url:
        for ca in (certificates / "ca.pem", str(certificates / "own.pem")):
            with imagepipe.Client(url, token=WORD, ca=ca) as asking:
                (prediction,) = asking.predict([_png()])
            assert prediction.label == "b"
        for wrong, words in (("wrong", "status 401: the token is wrong"), (None, "status 401: a token is needed")):
            with pytest.raises(ModelError, match=words):
                imagepipe.Client(url, token=wrong, ca=certificates / "ca.pem")
        with pytest.raises(ModelError, match="certificate verify failed"):
            imagepipe.Client(url, token=WORD)
    assert "401" in caplog.text
    assert WORD not in caplog.text


def _png() -> bytes:
    from PIL import Image

    from tests.conftest import encode_image

    return encode_image(Image.new("RGB", (8, 8)), "PNG")


def test_the_client_sends_no_token_in_clear_and_says_which_file_is_unusable(tmp_path):
    with pytest.raises(ConfigError, match="would go there unencrypted"):
        imagepipe.Client("http://models.example", token=WORD)
    with pytest.raises(ConfigError, match="one word of printable ASCII"):
        imagepipe.Client("https://models.example", token=f"{WORD}\r\nHost: other")
    (tmp_path / "text").write_text("text")
    for file in ("text", "none"):
        with pytest.raises(ConfigError, match=f"{file} is no file of certificates"):
            imagepipe.Client("https://models.example", ca=tmp_path / file)


def test_a_caller_is_told_of_the_name_that_the_server_lacks():
    with serve(Access(hosts=["models.example"])) as url:
        reason = r"status 400: this server doesn't answer to the name 'other.example' \(--allow-host\)"
        with pytest.raises(ModelError, match=reason):
            imagepipe.Client(url, headers={"Host": "other.example"})
        assert httpx.get(url, headers={"Host": "models.example"}).is_success


def test_a_reason_in_plain_text_reaches_the_caller():
    with serve(EVERYBODY) as url, pytest.raises(ModelError, match="status 502: no upstream"):
        imagepipe.Client(url, headers={"X-Proxy": "1"})
