"""The pages, their site (``conf.py``), and what generates pages from code (``reference.py``)."""
