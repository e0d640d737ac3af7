"""Shared by benchmarks and training: which photos are held out, and a distance of pictures."""
