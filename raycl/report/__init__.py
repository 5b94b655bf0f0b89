"""Tracked runs into tables and figures."""
