"""Signatures: what is pushed is signed, and a server that verifies loads nothing that is not signed or was changed."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from model_signing import hashing, signing
from typer.testing import CliRunner

from imagepipe.base import tfrecord
from imagepipe.base.errors import ConfigError, ModelError
from imagepipe.deploy import folder, storage
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.pushing import push_model
from imagepipe.deploy.signing import PASSWORD, SIGNATURE, check_private_key, check_public_key, copy_verified, is_signed
from imagepipe.serving.engine import ServedModel
from imagepipe.serving.predictor import load
from pipeline.cli import app
from pipeline.config_file import read_config
from tests.serving.conftest import look_twice, save_brightness


def write_keys(directory: Path, name: str, key=None, password: bytes | None = None) -> Path:
    """Writes NAME.key and NAME.pub; returns the first."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem, traditional = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    (directory / f"{name}.key").write_bytes(key.private_bytes(pem, traditional, encryption))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (directory / f"{name}.pub").write_bytes(public)
    return directory / f"{name}.key"


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    write_keys(directory, "own")
    write_keys(directory, "other")
    return directory


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A model as the Trainer exports it, with a file beside the graph's own."""
    root = tmp_path_factory.mktemp("model")
    saved = save_brightness(root / "model", root / "assets")
    (saved / "assets.extra").mkdir()
    (saved / "assets.extra" / "train_statistics.pb").write_bytes(b"statistics")
    return saved


@pytest.fixture
def config(keys, tmp_path) -> DeployConfig:
    return DeployConfig(name="digits", path=str(tmp_path / "serving"), sign=str(keys / "own.key"))


@pytest.fixture
def version(source, config) -> Path:
    return Path(folder.deploy(str(source), config).uri)


def reason(version: Path, key: Path) -> str:
    """Why a version is not loaded."""
    with pytest.raises(ModelError) as caught, copy_verified(version, key):
        pass
    assert str(caught.value).startswith(f"{version} is not loaded: ")
    return str(caught.value).removeprefix(f"{version} is not loaded: ")


def read_files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_pushed_version_is_signed_as_a_whole_and_what_is_verified_is_a_private_copy(source, version, keys):
    assert read_files(version).keys() == read_files(source).keys() | {SIGNATURE}
    with copy_verified(version, keys / "own.pub") as copy:
        assert read_files(copy) == read_files(version)
        (version / "saved_model.pb").write_bytes(b"changed after it was verified")
        assert read_files(copy) == read_files(source) | {SIGNATURE: (version / SIGNATURE).read_bytes()}
        assert copy.parent.stat().st_mode & 0o777 == 0o700
    assert not copy.exists()


def change_byte(version: Path) -> None:
    data = next(version.glob("variables/variables.data*"))
    content = bytearray(data.read_bytes() or b"x")
    content[-1] ^= 1
    data.write_bytes(content)


def rename_signature(version: Path) -> None:
    (version / SIGNATURE).rename(version / "signature")


def change_signature(version: Path) -> None:
    """Puts the hash of a changed file into the signature, which fits the files then, but no longer the key."""
    bundle = json.loads((version / SIGNATURE).read_text())
    statement = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b'"assets.extra/', b'"assets.extrb/')
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement).decode()
    (version / SIGNATURE).write_text(json.dumps(bundle))


def link(version: Path) -> None:
    labels = version / "assets" / "labels"
    labels.rename(version.parent / "labels")
    labels.symlink_to(version.parent / "labels")


CHANGES = {
    "a changed byte": (change_byte, r"variables/variables\.data-\S+ was changed since it was signed"),
    "a changed file in assets.extra": (
        lambda v: (v / "assets.extra" / "train_statistics.pb").write_bytes(b"others"),
        r"assets\.extra/train_statistics\.pb was changed since",
    ),
    "an added file in assets.extra": (
        lambda v: (v / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"x"),
        r"assets\.extra/tf_serving_warmup_requests was added since",
    ),
    "an added hidden file": (lambda v: (v / ".gitattributes").write_bytes(b"x"), r"\.gitattributes was added since"),
    "a removed file": (lambda v: (v / "assets" / "labels").unlink(), r"assets/labels was removed since"),
    "a renamed file": (
        lambda v: (v / "assets" / "labels").rename(v / "assets" / "names"),
        r"assets/names was added; assets/labels was removed since",
    ),
    "a renamed signature": (rename_signature, r"it is not signed \(model\.sig is missing\)"),
    "no signature": (lambda v: (v / SIGNATURE).unlink(), r"it is not signed \(model\.sig is missing\)"),
    "a changed signature": (change_signature, r"model\.sig was changed: the signature in it is not valid"),
    "no signature in the file": (
        lambda v: (v / SIGNATURE).write_bytes(b"[" * 100_000),
        r"model\.sig can't be read as a signature: RecursionError",
    ),
    "an empty signature": (lambda v: (v / SIGNATURE).write_bytes(b""), r"model\.sig can't be read as a signature"),
    "a file of zeros as the signature": (
        lambda v: (v / SIGNATURE).write_bytes(bytes(2**24 + 1)),
        r"model\.sig has more than 16 MiB",
    ),
    "a symbolic link": (link, r"assets/labels is a symbolic link"),
    "a linked folder": (
        lambda v: (v / "assets.extra" / "all").symlink_to("/"),
        r"assets\.extra/all is a symbolic link",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_version_that_was_changed_is_not_loaded_and_the_change_is_named(version, keys, case):
    change, words = CHANGES[case]
    change(version)
    assert re.match(words, reason(version, keys / "own.pub"))


def test_a_version_that_another_key_signed_is_not_loaded(version, keys):
    assert reason(version, keys / "other.pub").startswith("it is signed with another key than that of")
    bundle = json.loads((version / SIGNATURE).read_text())
    del bundle["verificationMaterial"]["publicKey"]["hint"]  # which only says which key it should be
    (version / SIGNATURE).write_text(json.dumps(bundle))
    assert "the signature in it is not valid" in reason(version, keys / "other.pub")


def test_what_a_signature_leaves_out_is_not_loaded(version, keys):
    everything_else = hashing.Config().set_ignored_paths(paths=[SIGNATURE, "assets.extra"])
    signer = signing.Config().use_elliptic_key_signer(private_key=keys / "own.key")
    signer.set_hashing_config(everything_else).sign(version, version / SIGNATURE)
    assert reason(version, keys / "own.pub").startswith("its signature leaves out assets.extra")
    shutil.rmtree(version / "assets.extra")
    with copy_verified(version, keys / "own.pub"):
        pass  # as the signature states


def test_a_copy_never_fills_the_disk(version, keys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 2_000))
    assert "does not fit: a model gets half of the free space" in reason(version, keys / "own.pub")


def test_a_server_stays_on_the_signed_version_when_others_appear(source, config, version, keys, tmp_path, caplog):
    """Also when the newest is signed, but not as it is there."""
    root = version.parent
    served = ServedModel(root, "digits", lambda size: None, keys / "own.pub")
    live = served.engine
    assert live.version == version.name
    newer, newest = root / f"{int(version.name) + 1}", root / f"{int(version.name) + 2}"
    shutil.copytree(source, newer)
    shutil.copytree(version, newest)
    (newest / "assets.extra" / "train_statistics.pb").write_bytes(b"x")
    look_twice(served)
    assert served.engine is live
    assert f"version {newer.name} is refused: {newer} is not loaded: it is not signed" in caplog.text
    assert "assets.extra/train_statistics.pb was changed since it was signed" in caplog.text
    caplog.clear()
    look_twice(served)
    assert not caplog.text  # it is tried again when its files change
    shutil.copy(source / "assets.extra" / "train_statistics.pb", newest / "assets.extra")
    look_twice(served)
    assert served.engine.version == newest.name
    assert served.engine.model.folder == newest
    assert served.engine.model.signatures.keys() == {"serving_default", "tf_examples", "__saved_model_init_op"}
    shutil.rmtree(newest)
    shutil.rmtree(version)
    look_twice(served)
    assert served.engine.version == newest.name  # only an unsigned one is left


def test_no_unsigned_model_is_loaded_at_the_start_or_into_a_callers_process(source, version, keys):
    with pytest.raises(ModelError, match="it is not signed"):
        ServedModel(source, "digits", lambda size: None, keys / "own.pub")
    with pytest.raises(ModelError, match="it is not signed"):
        load(source, verify=keys / "own.pub")
    (answer,) = load(version, verify=keys / "own.pub").predict([base64.b64decode(_PIXEL)])
    assert answer.label == "dark"


_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def test_versions_in_an_object_store_are_signed_before_they_are_complete(source, store, keys, monkeypatch):
    names = []
    copy = storage.filesystem.copy
    monkeypatch.setattr(storage.filesystem, "copy", lambda a, b: (names.append(b), copy(a, b)))
    version = storage.add_version(str(source), f"{store.uri}/models", inner="{version}", key=str(keys / "own.key"))
    assert names[0].endswith(SIGNATURE)
    assert names[-1].endswith("saved_model.pb")
    fetched = storage.fetch_folder(f"{store.uri}/models/{version}/{version}")
    with copy_verified(fetched, keys / "own.pub") as verified:
        assert read_files(verified).keys() == read_files(source).keys() | {SIGNATURE}


def test_a_version_without_the_keys_signature_is_pushed_again_once(source, config, keys):
    model = str(source)
    unsigned = config.model_copy(update={"sign": None})
    first = push_model(model, unsigned)
    assert push_model(model, unsigned).outcome == "already_deployed"
    signed = push_model(model, config)
    assert (first.outcome, signed.outcome) == ("pushed", "pushed")
    assert push_model(model, config).outcome == "already_deployed"
    rotated = config.model_copy(update={"sign": str(keys / "other.key")})
    renewed = push_model(model, rotated)
    assert renewed.outcome == "pushed"
    assert is_signed(renewed.version.uri, str(keys / "other.key"))
    folder.rollback(rotated)
    assert push_model(model, rotated).outcome == "rolled_back"


def test_a_deployed_copy_of_a_signed_version_has_the_signature_of_its_own_key(version, config, keys, tmp_path):
    other = config.model_copy(update={"path": str(tmp_path / "there"), "sign": str(keys / "other.key")})
    with copy_verified(Path(folder.deploy(str(version), other).uri), keys / "other.pub"):
        pass
    as_it_was = config.model_copy(update={"path": str(tmp_path / "elsewhere"), "sign": None})
    with copy_verified(Path(folder.deploy(str(version), as_it_was).uri), keys / "own.pub"):
        pass


def test_a_model_that_cannot_be_signed_does_not_get_there(source, config, tmp_path):
    linked = shutil.copytree(source, tmp_path / "linked")
    (linked / "assets.extra" / "link").symlink_to(source)
    with pytest.raises(ModelError, match=r"can't be signed: .*symlink"):
        folder.deploy(str(linked), config)
    with pytest.raises(ConfigError, match="No such file"):
        folder.deploy(str(source), config.model_copy(update={"sign": str(tmp_path / "none.key")}))
    assert storage.list_versions(str(config.path)) == []


def test_keys_that_cannot_be_used_are_refused_with_the_commands_that_make_a_pair(keys, tmp_path, monkeypatch):
    wrong = {
        "none": (tmp_path / "none.key", "No such file or directory"),
        "a folder": (tmp_path, "not an ordinary file"),
        "public": (keys / "own.pub", "private key"),
        "of RSA": (write_keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048)), "it is of RSAPrivateKey"),
        "another curve": (write_keys(tmp_path, "k1", ec.generate_private_key(ec.SECP256K1())), "it is of secp256k1"),
    }
    for path, words in wrong.values():
        with pytest.raises(ConfigError) as caught:
            check_private_key(str(path))
        message = str(caught.value)
        assert message.startswith(f"deploy.sign: {path} is no private key to sign models with (")
        assert words in message
        assert "PRIVATE KEY-" not in message
    for path in (tmp_path / "none.pub", keys / "own.key", tmp_path / "rsa.pub"):
        with pytest.raises(ConfigError, match=re.escape(f"--verify: {path} is no public key to verify signatures")):
            check_public_key(path)
    if shutil.which("openssl"):
        commands = message.partition("Make a pair of keys: ")[2]
        subprocess.run(commands, shell=True, cwd=tmp_path, check=True, capture_output=True)  # noqa: S602 (our own)
        check_private_key(str(tmp_path / "signing.key"))
        check_public_key(tmp_path / "signing.pub")


def test_a_run_and_a_server_refuse_a_key_before_they_start(config, source, tmp_path):
    """A run does so before it makes anything, a server before it loads TensorFlow."""
    path = tmp_path / "flowers" / "pipeline.yaml"
    path.parent.mkdir()
    record = tfrecord.encode_example({"input": [b"image"], "label": [b"cat"]})
    (path.parent / "data.tfrecord").write_bytes(tfrecord.frame_record(record))
    sections = ("data: {path: data.tfrecord}", "trainer: {weights: none}", "deploy: {sign: keys/signing.key}")
    path.write_text("\n".join(("name: flowers", *sections)))
    key = tmp_path / "flowers" / "keys" / "signing.key"
    assert read_config(path).deploy.sign == str(key)
    result = CliRunner().invoke(app, ["run", str(path)])
    assert result.exit_code == 2
    assert f"deploy.sign: {key} is no private key to sign models with (No such file or directory)" in result.output
    assert not (tmp_path / "flowers" / "artifacts").exists()
    result = CliRunner().invoke(app, ["serve", str(source), "--verify", str(key)])
    assert result.exit_code == 2
    assert f"--verify: {key} is no public key to verify signatures with" in result.output


def test_the_password_of_a_key_comes_from_the_environment(source, config, tmp_path, monkeypatch):
    key = str(write_keys(tmp_path, "locked", password=b"geheim"))
    with pytest.raises(ConfigError, match=f"has a password: give it as {PASSWORD}"):
        check_private_key(key)
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(ConfigError, match=r"is no private key to sign models with .*[Pp]assword"):
        check_private_key(key)
    monkeypatch.setenv(PASSWORD, "geheim")
    signed = Path(folder.deploy(str(source), config.model_copy(update={"sign": key})).uri)
    with copy_verified(signed, tmp_path / "locked.pub"):
        pass
    with pytest.raises(ConfigError, match=f"has no password: unset {PASSWORD}"):
        check_private_key(str(config.sign))
