"""HTTP/1.1 as bytes: heads, header fields, bodies, routes, and the gateway's own responses.

Pure: it opens no socket and reads no clock. Only ``local_response.py`` serialises errors;
``exchange_record.py`` is what other rooms know of a finished exchange.
"""
