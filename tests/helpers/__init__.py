"""Shared by tests: plain functions and data, without fixtures."""
