"""Benchmarks of the caching core, one command each: JSON and a picture out."""
