"""Names the packages to ship; everything else about the project is in pyproject.toml.

The container image and ``pip install`` run this file.
"""

from setuptools import find_packages, setup

PACKAGES = ["components", "imagepipe", "pipeline", "trainer", "transform"]

setup(
    packages=find_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]),
    package_data={
        "components.model_report": ["*.html", "*.css", "*.js"],
        "components.serving_monitor": ["page.html"],
        "imagepipe": ["py.typed"],
        "imagepipe.serving": ["docs.html", "page.html"],
        "pipeline.labelling": ["page.html"],
        "pipeline.runs.dashboard": ["*.css", "*.js", "templates/*"],
        "trainer.weights": ["backbones.json.gz", "layer_names.json.gz"],
    },
)
