"""All plots, drawn by matplotlib."""
