"""Pruned weights written back into the file they came from, one format each."""
