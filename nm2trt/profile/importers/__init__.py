"""Measurements that others took, as reports."""
