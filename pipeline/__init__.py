"""The pipeline: its configuration, its DAG, its local runner and the command line."""
