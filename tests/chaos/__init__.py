"""A run that kills a busy worker's processes all the time, and counts what is told of its jobs."""
