"""All that matplotlib draws."""
