"""Names the packages to ship; everything else about the project is in pyproject.toml.

Beam workers get the code through ``--setup_file`` and the container image by ``pip install``: both run this file.
"""

from setuptools import find_packages, setup

PACKAGES = ["components", "ingest", "kubeflow", "pipeline", "serving", "trainer", "transform"]

setup(
    packages=find_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]),
    package_data={
        "components": ["report/*.html", "report/*.css", "report/*.js"],
        "pipeline": ["dashboard/*.css", "dashboard/*.js", "dashboard/templates/*"],
        "serving": ["page.html"],
    },
)
