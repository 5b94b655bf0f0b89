"""Tracked runs into tables and figures: ``report`` prints, writes and attaches them."""
