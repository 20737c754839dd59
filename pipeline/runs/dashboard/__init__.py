"""``imagepipe dashboard``: pages about all runs of a workdir, served on this machine or written as files."""
