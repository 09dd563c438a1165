"""What finished exchanges add up to: metrics, token usage per key, time series, the access log.

``recorder.py`` passes finished exchanges in batches to the sinks. Of these modules, only
``response_window.py`` is on the path of a request.
"""
