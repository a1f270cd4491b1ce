"""A plugin for napari: the Denoise widget, and the built-in specimen as sample data."""
