"""Students as files that other programs open."""
