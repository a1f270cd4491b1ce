"""An HTML report about finished runs."""
