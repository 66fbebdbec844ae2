"""The pools of a real worker, on real brokers."""
