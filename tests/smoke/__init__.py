"""A setup of brokers and workers in which some are killed."""
