"""Which request runs, which waits, what follows a failure, and the states of an exchange.

Pure: decisions are return values, and the time is an argument where one is needed.
"""
