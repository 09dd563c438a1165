"""Settings: one declaration each. Pure: no I/O, clock or environment."""
