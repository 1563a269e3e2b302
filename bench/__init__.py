"""Every published figure is one module here: ``python -m bench`` prints them all, each beside its limit."""
