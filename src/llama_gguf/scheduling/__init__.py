"""Which request runs next, which one waits, and the states of an exchange.

Pure: the time is an argument, and decisions are return values.
"""
