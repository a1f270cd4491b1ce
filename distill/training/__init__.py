"""The co-training of a sampler and its student."""
