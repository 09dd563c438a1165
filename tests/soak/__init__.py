"""A real gateway under everything that clients and engines do to it, for a long time.

``engine`` is what stands behind it and ``client`` what stands before it, both in this process;
``visits`` is what clients do, ``soak`` starts it all and looks whether everything is back where
it began. ``make soak`` is the long form, ``test_soak`` the short one.
"""
