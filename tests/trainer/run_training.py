"""A process of test_run_fn.py: runs the Trainer's run_fn with the arguments in a JSON file, as TFX does."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

from trainer.run_fn import run_fn

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("trainer").setLevel(logging.INFO)
    logging.getLogger("trainer.progress").setLevel(logging.INFO)
    run_fn(SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text())))
