"""``taskpass demo``: two real databases, a broker and one story, played by real processes over the public commands.

Nothing in here is used by the product. Each step of the story states a claim and checks it; one that does not hold makes
the demo fail.
"""
