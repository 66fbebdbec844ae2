"""A small shop, whose consumers watch its jobs; README.md tells how to play with it."""
