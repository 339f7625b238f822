"""Latency tables: measure operations on a target, compose and check the estimates, and keep the committed tables."""
