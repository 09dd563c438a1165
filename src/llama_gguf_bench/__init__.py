"""`llama-gguf bench`: measures an OpenAI-compatible endpoint under load.

- ``options``: the parameters of a run. ``prompts``: the prompts that it sends.
- ``connection``: HTTP connections. ``responses``: reads responses. ``records``: one per request.
- ``load``: closed and open loop. ``lag``: the load generator's own delays. ``server``: facts about
  the server. ``session``: one run. ``overhead``: two endpoints in turn.
- ``estimates``: confidence intervals. ``summary``: computes the numbers of a level from records.
- ``results``: the result file. ``compare``: two runs. ``tables``, ``plots``, ``page``: the output.
"""
