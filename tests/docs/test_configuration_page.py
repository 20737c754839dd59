from pipeline.config import Config
from tools import config_reference


def test_the_page_agrees_with_the_models():
    assert config_reference.PAGE.read_text() == config_reference.write_page(), "run: python -m tools.config_reference"


def test_every_key_has_a_description():
    for path, model in config_reference.list_sections("", Config):
        missing = [name for name, text in config_reference.describe_keys(model).items() if not text]
        assert not missing, f"{path}: {missing}"
