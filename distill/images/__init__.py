"""Reads images from files and arrays of many kinds, and writes results block by block."""
