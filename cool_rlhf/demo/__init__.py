"""The embedded world: readable chats from a seeded generator, and an exact rule for each domain that scores a response.

It lets the whole pipeline run and be judged on a small machine. The rules (gold reward) label preferences and measure
results; nothing is ever trained on them directly.
"""
