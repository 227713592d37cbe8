"""ezxmc: tag a brand-new catalog with no labelled data."""
