"""Loading models and measuring it; the only room that knows torch and transformers.

Those two are imported in child processes and inside functions, never with a module.
"""
