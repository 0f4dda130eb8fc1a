"""Measuring cold starts: links of a set rate, nodes that start from nothing, samples and what they come to."""
