"""Impressions x actions -> labelled requests: pure, no I/O, no clock."""
