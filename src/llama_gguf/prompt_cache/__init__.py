"""The states of slots on disk, by which the prompt cache outlives the engine.

``entry`` is what is known of a file, ``choice`` decides which files are restored, replaced and
removed, ``attribution`` whose content a slot has, ``quiet`` when it is a good moment to save:
these are pure. ``folder`` and ``model_digest`` do the I/O on files. ``supervisor/prompt_keeper.py``
sends the requests to the engine.
"""
