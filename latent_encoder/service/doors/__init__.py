"""The doors: each translates between its callers and ``Encoder``, and does nothing more."""
