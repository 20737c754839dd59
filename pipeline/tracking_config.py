"""The ``tracking`` section of the configuration: where runs are recorded besides their own folders."""

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from imagepipe.base.section import Section


class TrackingConfig(Section):
    """Where runs on this machine are recorded besides their own folders."""

    mlflow: str | None = Field(
        None,
        description="Address of an MLflow server, http://… or https://…: each run is recorded there, and the pushed "
        "versions in its model registry. By default none; needs the extra mlflow. Credentials come from the "
        "environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    )

    @field_validator("mlflow")
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        if address is None:
            return None
        parts = urlsplit(address)
        if "@" in parts.netloc or parts.query or parts.fragment:  # messages of this kind leave the value out
            raise ValueError(
                "expected a host and a path only. Credentials go into the environment: MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected the address of an MLflow server, http://… or https://…")
        return address.rstrip("/")
