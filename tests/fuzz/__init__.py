"""Wrong bytes at the gateway, without sockets: whatever comes, nothing goes on that is not one
well-formed message, and everything is given back.

``cases`` says what is held against the gateway, ``mutations`` makes the bytes. ``make fuzz`` goes
on for a while with new ones; ``test_fuzz`` tries the same few thousand every time.
"""
