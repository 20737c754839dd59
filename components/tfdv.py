"""TensorFlow Data Validation. Import it from here: on its own it can't be imported in this environment.

TFDV 1.16.1 imports ``tfx_bsl.arrow.sql_util``, which slices record batches by SQL (``statistics/stats_options.py``,
``utils/slicing_util.py``). That module needs ZetaSQL, which tfx-bsl has dropped: the wheel of 1.21.0 doesn't have it,
and a plain ``import tensorflow_data_validation`` raises ``ImportError: cannot import name 'sql_util'``. TFX 1.21.0 puts
a mock in its place as soon as the package ``tfx`` is imported (``tfx/__init__.py``). So ``tfx`` has to be imported
first, and this is the only module that needs to know. Nothing here slices by SQL.

TFMA 0.52 isn't affected: it catches the ImportError (``extractors/sql_slice_key_extractor.py``).

Beam's worker processes import TFDV when they unpickle its functions, which may be before anything of TFX or of ours.
They are told to import ``tfx`` at their start; see ``BeamConfig`` in ``pipeline/config.py``.

This module can go once tfx-bsl's wheel has ``sql_util`` again, or the TFDV that ``override-dependencies`` in
pyproject.toml pins no longer imports it.

Example:
    Instead of ``import tensorflow_data_validation as tfdv``::

        from components.tfdv import tfdv

        schema = tfdv.infer_schema(statistics)
"""

import tfx  # noqa: F401 (stands in for tfx_bsl.arrow.sql_util, which the next import needs)

# isort: split
import tensorflow_data_validation as tfdv

__all__ = ["tfdv"]
