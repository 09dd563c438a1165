"""SHA-256, and the comparison of secrets, without OpenSSL.

``hashlib`` and ``hmac`` load OpenSSL's libcrypto for any of their functions: 1.3 MB of memory and 2
ms in each process. A digest of a key takes the same 0.3 us with CPython's own implementation, which
they use where Python has no OpenSSL; the standard library's ``random`` imports it in the same way.
It has no fast form for large data: a model's file is better digested by ``hashlib``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["compare_digest", "sha256"]

if TYPE_CHECKING:
    from hashlib import sha256
    from hmac import compare_digest
else:
    # These names are private, so each of them may be missing in another Python.
    try:
        from _operator import _compare_digest as compare_digest
    except ImportError:
        from hmac import compare_digest
    try:
        from _sha2 import sha256  # from CPython 3.12 on
    except ImportError:
        try:
            from _sha256 import sha256
        except ImportError:
            from hashlib import sha256
