"""ModelReport: the results of a run on one page."""
