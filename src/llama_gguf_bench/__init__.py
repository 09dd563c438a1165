"""`llama-gguf bench`: measures an OpenAI-compatible endpoint under load.

- ``options``: what is asked for. ``prompts``: what is sent.
- ``connection``: one HTTP connection. ``answers``: what an answer says. ``records``: what is kept.
- ``load``: closed and open loop. ``lag``: whether the generator itself was late. ``server``: what
  the other side tells. ``session``: one run of all that. ``overhead``: two sides in turn.
- ``estimates``: numbers with their noise. ``summary``: from records to numbers.
- ``results``: the file of a run. ``compare``: two of them. ``tables``, ``plots``, ``page``: shown.
"""
