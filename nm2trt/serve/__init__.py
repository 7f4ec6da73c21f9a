"""A build -> what inference servers load, and the check that they serve it."""
