"""Bytes that look for a way through what reads a registry's answers, an image or a file of the operator's."""
