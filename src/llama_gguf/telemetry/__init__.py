"""What finished exchanges add up to: metrics, token usage per key, time series, the access log.

No module here is on the path of a request; ``recorder.py`` processes finished exchanges in batches.
"""
