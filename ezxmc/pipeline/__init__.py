"""A run from cold to report, and its updates: what the other folders do, put in order."""
