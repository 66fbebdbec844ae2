"""The chaos of `make chaos-relay`: killed replicas, a broker that restarts, poisonous events."""
