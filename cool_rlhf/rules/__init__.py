"""Rules that judge a response by program: those that are shipped, and how a user's own are found.

A rule is a function of a module, named ``module:function`` in the config; its signature is
:class:`cool_rlhf.protocols.Rule`.
"""
